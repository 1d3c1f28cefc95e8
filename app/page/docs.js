/** The API's description in Swagger UI, which asks this very service, below whatever path prefix it lies. */

const root = new URL("..", import.meta.url);
const spec = await (await fetch(new URL("openapi.json", root))).json();
spec.servers = [{ url: root.href.replace(/\/$/, "") }];

window.SwaggerUIBundle({
  spec,
  dom_id: "#api",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  validatorUrl: null, // would ask a site on the internet
});
