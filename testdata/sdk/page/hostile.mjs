// Names that would be markup, code or members of an object's prototype do nothing, wherever they stand, and are shown
// as they are: in user IDs, labels, groups, models, endpoints, members of a config, and in what a model and a provider
// say.
import { api, env, named, walk } from "./browser.mjs";

const names = [
  "<script>hacked=1</script>", "<img src=x onerror=hacked=1>", `"'><svg onload=hacked=1>`, "</textarea><b>",
  "__proto__", "constructor", "toString", "\u202Egpj.exe", "مرحبا", "javascript:hacked=1", "a?b#c%2e&amp;",
  "x".repeat(64),
];
const users = names.map((name) => name.replace("\u202E", "")); // the API takes printable ones only
const tenant = "hostile-names"; // without the usage that other tenants have
const object = (of) => Object.fromEntries(names.map((name, i) => [name, of(name, i)])); // with a __proto__ of its own

async function prepare(t) {
  const { body } = await api("GET", `/${env.tenant}/admin/config`);
  const config = { ...body.config, ...object(() => "unknown") };
  const { text } = config.providers;
  config.user_groups = { ...config.user_groups, ...object(() => ({ tokens: 1000, models: ["*"] })) };
  const like = (model, models = {}) => ({ ...text.endpoints.openai, default_model: model, models });
  text.endpoints = {
    ...text.endpoints, answers: like("hostile"), refuses: like("refused"),
    ...object((name, i) => like(`m${i}`, { [name]: {} })),
  };
  const wanted = (response, status) => t.equal(response.status, status, response.text);
  wanted(await api("POST", "/admin/tenants", { tenantId: tenant, config }), 201);
  for (const [i, name] of names.entries()) {
    const issued = await api("POST", `/${tenant}/admin/keys`, { userId: users[i], group: name, label: users[i] });
    wanted(issued, 201);
    for (let n = i < 4 ? 2 : 1; n > 0; n--) { // the first are those that charts show
      const body = { model: name, max_tokens: 3, temperature: n, messages: [{ role: "user", content: "x" }] };
      wanted(await api("POST", `/${tenant}/v1/chat/completions`, body, issued.body.apiKey), 200);
    }
  }
  config.user_groups.late = { tokens: 1 }; // so that the history has a difference
  wanted(await api("PUT", `/${tenant}/admin/config`, { config }), 200);
  const today = new Date().toISOString().slice(0, 10);
  await t.until("usage by model", async () => {
    const got = await api("GET", `/${tenant}/admin/usage?from=${today}&to=${today}&by=model`);
    return Object.keys(got.body.days[0].byModel).length === names.length;
  });
}

// wantShown waits until the view shows names as they are.
async function wantShown(t, where, some = names) {
  let missing;
  await t.until(`names in ${where}`, async () => {
    const text = await t.page.evaluate(() => [...document.querySelectorAll("main, dialog[open]")]
      .flatMap((part) => [part, ...part.querySelectorAll("input, textarea, select")])
      .map((part) => part.value ?? part.textContent).join("\n"));
    missing = some.filter((name) => !text.includes(name));
    return missing.length === 0;
  }).catch((error) => { throw new Error(`${error.message}: ${JSON.stringify(missing)} is missing`); });
  await harmless(t, where);
}

// harmless fails if anything of the names was taken for markup or code.
async function harmless(t, where) {
  const made = await t.page.evaluate(() => [
    globalThis.hacked, document.querySelectorAll("[onload], [onerror], main img, main script, main b").length,
    Object.keys(Object.prototype),
  ]);
  t.equal(made, [undefined, 0, []], `what ${where} made of the names`);
  t.calm();
}

// choice finds something to choose, whatever it is.
function choice(t, name) {
  const main = t.page.getByRole("main");
  return ["button", "tab", "radio"].map((role) => main.getByRole(role, { name: named(name) }))
    .reduce((all, one) => all.or(one)).filter({ visible: true });
}

await walk(async (t) => {
  await prepare(t);
  await t.enter();
  await t.choose(tenant);

  await t.open("Overview");
  await choice(t, "7 days").click();
  for (const by of ["Model", "Endpoint", "Group"]) {
    await choice(t, by).click();
    await wantShown(t, `Overview by ${by}`, names.slice(0, 4));
  }
  await t.check("overview");

  await t.open("Users");
  for (const [i, name] of users.entries()) {
    await t.field("User or key").fill(name);
    await t.page.keyboard.press("Enter");
    await wantShown(t, "a key", [name]);
    if (i > 1) continue;
    await t.button("Revoke").click();
    await t.dialog().waitFor();
    await harmless(t, "a dialog about a key");
    await t.page.keyboard.press("Escape");
    await t.misses(t.dialog());
  }
  await t.field("User or key").fill("");
  await t.page.keyboard.press("Enter");
  await wantShown(t, "the list of users", users);
  await t.check("users");

  await t.open("Config");
  const text = await t.field("Config").inputValue();
  t.equal(Object.keys(JSON.parse(text).user_groups).includes("__proto__"), true, "a group that is called __proto__");
  await wantShown(t, "Config", names.filter((name) => !name.includes('"')));
  await t.check("config");
  for (const name of ["__proto__", names[1]]) { // the forms change the group of that name, and nothing else
    await t.button(new RegExp(`^Edit ${name.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")}$`)).click();
    await t.field("Tokens", t.dialog()).fill("77");
    await wantShown(t, "the form of a group", [name]);
    await t.button("Save", t.dialog()).click();
    await t.misses(t.dialog());
    const groups = new Map(Object.entries(JSON.parse(await t.field("Config").inputValue()).user_groups));
    t.equal([groups.size, groups.get(name).tokens], [names.length + 4, 77], `the groups with that of ${name}`);
  }
  await t.button("Test refuses").click();
  await t.alert("<script>hacked='refused'</script>").waitFor();
  await harmless(t, "a test of an endpoint");
  await t.button("History").click();
  await t.button("Difference").first().click();
  await t.sees(/late/);
  await harmless(t, "History");

  for (const view of ["Tenants", "Payments", "Health"]) {
    await t.open(view);
    await harmless(t, view);
  }

  await t.open("Try it");
  await t.field("Endpoint").selectOption("answers");
  await t.field("Message").fill(names.slice(0, 4).join(" "));
  await t.button("Send").click();
  await wantShown(t, "a conversation", names.slice(0, 4));
  await wantShown(t, "a conversation", ["<img src=x onerror=hacked='answer'>"]);
  await t.check("conversation");
  await t.field("Endpoint").selectOption("refuses");
  await t.field("Message").fill("x");
  await t.button("Send").click();
  await t.alert("<script>hacked='refused'</script>").waitFor();
  await harmless(t, "an error");
}, [400]);
