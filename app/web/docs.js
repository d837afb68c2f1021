import {storedKey} from "./service.js";

const ui = SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  validatorUrl: null, // a service of others, which would be sent the address of this one
  onComplete: useKey,
});

/** A key that was given to the page in this tab is used here too. */
function useKey() {
  const key = storedKey();
  const schemes = ui.specSelectors.specJson().getIn(["components", "securitySchemes"]);
  if (key && schemes?.has("HTTPBearer")) ui.preauthorizeApiKey("HTTPBearer", key);
}
