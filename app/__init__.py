"""The service: answers pictures with the classes that the models in a folder of artifacts give them."""
