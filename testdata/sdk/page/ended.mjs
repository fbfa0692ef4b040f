// What comes when the token ends while somebody is at work: the form, and after it what was typed, as it was.
import { api, env, walk } from "./browser.mjs";

// endTokens ends the tenant's tokens when the page asks for nothing that would tell it.
async function endTokens(t) {
  await t.settled();
  await api("DELETE", `/${env.tenant}/admin/tokens`);
}

async function newToken() {
  return (await api("POST", `/${env.tenant}/admin/tokens`)).body.adminToken;
}

async function inForm(t) {
  await t.open("Users");
  await t.button("New key").click();
  await t.field("User ID").fill("typed before");
  await t.field("Group").selectOption("free");
  await endTokens(t);
  await t.button("Create key").click();
  await t.signedOut();
  await t.check("ended");
  await t.signIn(env.tenant, await newToken());
  await t.field("User ID").waitFor();
  const typed = [await t.field("User ID").inputValue(), await t.field("Group").inputValue()];
  t.equal(typed, ["typed before", "free"], "what was typed");
  const keys = async () => (await api("GET", `/${env.tenant}/admin/keys?userId=typed%20before`)).body.keys.length;
  t.equal(await keys(), 0, "keys before they are wanted");
  await t.button("Create key").click();
  await t.sees(/user_[0-9a-f-]{36}/);
  t.equal(await keys(), 1, "keys");
}

async function inDialog(t) {
  await t.field("User or key").fill(env.alice);
  await t.page.keyboard.press("Enter");
  await t.heading("Key of alice").waitFor();
  await t.button("Top up").click();
  await t.field("Tokens", t.dialog()).fill("5");
  await t.field("Reason", t.dialog()).fill("typed before");
  await endTokens(t);
  await t.button("Top up", t.dialog()).click();
  await t.signedOut();
  await t.signIn(env.tenant, await newToken());
  await t.dialog().waitFor();
  t.equal(await t.field("Reason", t.dialog()).inputValue(), "typed before", "what was typed");
  const { body: { tokensLeft } } = await api("GET", `/${env.tenant}/admin/keys/${env.alice}`);
  await t.button("Top up", t.dialog()).click();
  await t.misses(t.dialog());
  t.equal((await api("GET", `/${env.tenant}/admin/keys/${env.alice}`)).body.tokensLeft, tokensLeft + 5, "the balance");
}

// inEditor: signing in sends nothing again.
async function inEditor(t) {
  await t.open("Config");
  const editor = t.field("Config");
  await t.until("a config", async () => (await editor.inputValue()).includes("anonymous"));
  const typed = (await editor.inputValue()).replace(/^\{/, '{\n  "typed": 12345678901234567890,');
  await editor.fill(typed);
  await endTokens(t);
  await t.button("Save").click();
  await t.signedOut();
  const requests = t.requests.length;
  await t.signIn(env.tenant, await newToken());
  await editor.waitFor();
  t.equal(await editor.inputValue(), typed, "what was typed");
  t.equal(t.requests.slice(requests).filter((request) => !request.startsWith("GET ")), [], "changes");
  await t.button("Save").click();
  await t.until("the config is saved", async () =>
    /"typed": ?12345678901234567890/.test((await api("GET", `/${env.tenant}/admin/config`)).text));
  await t.sees(t.status("Saved."));
}

// another: what the view of somebody else would still ask, it does not ask with the token of the next one.
async function another(t) {
  await t.page.clock.install();
  await t.enter();
  await t.open("Health");
  const status = "**/admin/status";
  await t.page.route(status, (route) => route.fulfill({ status: 401, json: { error: "Unauthorized" } }));
  await t.page.clock.fastForward(10_000);
  await t.signedOut();
  await t.page.unroute(status);
  await t.signIn(env.tenant, await newToken());
  await t.choices().first().waitFor();
  await t.settled();
  const seen = t.requests.length;
  await t.page.clock.fastForward(10_000);
  await t.open("Payments");
  t.equal(t.requests.slice(seen).filter((request) => request.includes("/admin/status")), [], "requests of Health");
}

// deleted: what was typed for a tenant that is deleted meanwhile is not shown as that of another.
async function deleted(t) {
  const gone = `${env.tenant}-gone`;
  await api("POST", "/admin/tenants", { tenantId: gone, config: {} });
  await t.enter();
  await t.choose(gone);
  await t.open("Config");
  await t.field("Config").fill('{"typed":1}');
  const save = `**/${gone}/admin/config`;
  await t.page.route(save, (route) => route.fulfill({ status: 401, json: { error: "Unauthorized" } }));
  await t.button("Save").click();
  await t.signedOut();
  await t.page.unroute(save);
  await api("DELETE", `/admin/tenants/${gone}`);
  await t.signIn("", env.operator);
  await t.until("another tenant's config", async () => !["", '{"typed":1}'].includes(await t.field("Config").inputValue()));
  await t.settled();
}

// back: the view below a dialog stays while that is open.
async function back(t) {
  await t.open("Users");
  await t.button("New key").click();
  await t.field("User ID").fill("typed before");
  await t.page.goBack();
  t.equal(await t.field("User ID").inputValue(), "typed before", "what was typed");
  await t.page.keyboard.press("Escape");
  await t.misses(t.dialog());
  await t.button("New key").waitFor();
}

await walk(async (t) => {
  await t.enter(env.tenant, env.tenantToken);
  for (const part of [inForm, inDialog, inEditor, deleted, back, another]) await part(t);
}, [401]);
