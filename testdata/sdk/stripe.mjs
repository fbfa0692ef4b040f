// Does what it is told with Stripe's own library, for the tests of internal/stripe. Reads a JSON array of tasks from
// standard input, and prints an array of results.
import Stripe from "stripe";
import { readFileSync } from "node:fs";

const tasks = {
  // The header of a webhook.
  sign: ({ payload, secret, timestamp }) =>
    Stripe.webhooks.generateTestHeaderString({ payload, secret, timestamp }),

  // The ID of the event, or why a webhook that came now (Unix, seconds) is refused.
  verify: ({ payload, header, secret, now }) => {
    try {
      return Stripe.webhooks.constructEvent(payload, header, secret, 300, undefined, now * 1000).id;
    } catch (e) {
      return e.constructor.name;
    }
  },

  // Sends a request to a server, and returns the response's ID.
  call: async ({ port, key, version, resource, method, args }) => {
    const stripe = new Stripe(key, {
      apiVersion: version, host: "127.0.0.1", port, protocol: "http", telemetry: false, maxNetworkRetries: 0,
    });
    const object = resource.split(".").reduce((at, name) => at[name], stripe);
    return (await object[method](...args)).id ?? null;
  },
};

const results = [];
for (const { task, ...args } of JSON.parse(readFileSync(0, "utf8"))) {
  results.push(await tasks[task](args));
}
console.log(JSON.stringify(results));
