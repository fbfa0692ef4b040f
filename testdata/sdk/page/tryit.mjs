// A conversation as a visitor: each request shows what it held, cost and left, and the API agrees.
import { api, env, walk } from "./browser.mjs";

await walk(async (t) => {
  const config = (await api("GET", `/${env.tenant}/admin/config`)).body.config;
  config.user_groups.anonymous = { tokens: 5000 };
  await api("PUT", `/${env.tenant}/admin/config`, { config });
  await t.enter(env.tenant, env.tenantToken);
  await t.open("Try it");
  await t.field("Message").fill("Hello <img src=x onerror='hacked=1'>");
  await t.button("Send").dblclick();
  const costs = t.page.getByText(/^held [\d,]+ · cost [\d,]+ · left [\d,]+ · /);
  await costs.first().waitFor();
  await t.settled();
  t.equal(await costs.count(), 1, "requests after a double click");
  const [held, cost, left] = (await costs.first().innerText()).match(/[\d,]+/g).map((n) => Number(n.replaceAll(",", "")));
  t.equal([held >= cost, cost > 0, left], [true, true, 5000 - cost], "held, cost and left");
  await t.sees(t.page.getByText(`has ${left.toLocaleString("en")} tokens left`));
  await t.check("conversation");

  // The second message belongs to the same conversation, and is paid by the same key.
  await t.field("Message").fill("And again");
  await t.page.keyboard.press("Control+Enter");
  await t.until("two requests", async () => await costs.count() === 2);

  // The format of Anthropic, in a new conversation with a new key.
  await t.button("New conversation").click();
  t.equal(await costs.count(), 0, "requests of the new conversation");
  await t.field("Endpoint").selectOption("anthropic");
  await t.field("Message").fill("Hello Claude");
  await t.button("Send").click();
  await t.until("one request", async () => await costs.count() === 1);
  t.equal((await costs.first().innerText()).includes(`left ${left.toLocaleString("en")} ·`), true, "the new key's balance");

  // An endpoint that is down, in the words of the gateway; the message stays.
  await t.field("Endpoint").selectOption("gone");
  await t.field("Message").fill("Is anybody there?");
  await t.button("Send").click();
  await t.sees(t.alert("Request ID"));
  t.equal(await t.field("Message").inputValue(), "Is anybody there?", "the message");

  // Visitors who may not come in get the server's sentence.
  delete config.user_groups.anonymous;
  await api("PUT", `/${env.tenant}/admin/config`, { config });
  await t.button("New conversation").click();
  await t.button("Send").click();
  await t.sees(t.alert("Anonymous login is disabled"));
}, [403, 502]);
