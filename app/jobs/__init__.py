"""Fine-tune jobs: a durable queue, the worker that empties it, and the process that trains."""
