// The forms of Config: a new tenant is set up with them alone, and what nobody edits stays as it is written.
import { api, env, walk } from "./browser.mjs";

const other = '"a.b\\"c<img src=x onerror=hacked=1>":{"tokens":1e3,"x":1.10}';
const exotic = `{"big":12345678901234567890,"user_groups":{"__proto__":{"tokens":5,"note":1.10},${other}},` +
  '"providers":{"text":{"default":"one","endpoints":{' +
  `"one":{"url":"${env.provider}/v1/chat/completions","api_key":"${env.providerKey}","default_model":"gpt-4o","zzz":1.0,` +
  '"models":{"__proto__":{"input":0.50,"above":{"tokens":1000,"input":2.0}}}},' +
  '"a.b/c?":{"url":"http://127.0.0.1:1/v1/chat/completions","api_key":"sk-2","default_model":"<b>m</b>\\n x"}}}},' +
  '"cors":{"allowed_origins":["https://a.example.com"]}}';

// saved returns the config as the server has it.
async function saved(tenant = env.tenant) {
  const { text } = await api("GET", `/${tenant}/admin/config`);
  return text.trim().slice('{"config":'.length, -1);
}

await walk(async (t) => {
  const ask = async (name) => {
    await t.button(name).click();
    return t.dialog();
  };
  // fill opens a dialog, fills it and presses its button.
  const fill = async (name, values, verb = "Save") => {
    const dialog = await ask(name);
    for (const [label, value] of Object.entries(values)) {
      const field = t.field(label, dialog);
      if (await field.evaluate((node) => node.tagName) === "SELECT") await field.selectOption(value);
      else await field.fill(value);
    }
    await t.button(verb, dialog).click();
    await t.settled();
    return dialog;
  };
  const done = async (...change) => {
    const dialog = await fill(...change);
    await t.misses(dialog);
  };
  const wantSaved = async (want, what, tenant) => t.equal(await saved(tenant), want, what);

  // A new tenant gets a group, an endpoint and prices.
  await api("POST", "/admin/tenants", { tenantId: "forms-new", config: {} });
  await t.enter();
  await t.choose("forms-new");
  await t.open("Config");
  await t.sees("Every key belongs to a group.");
  await done("Add group", { "Name": "free", "Tokens": "50000", "Rate limit": "10", "Window": "60", "Refill to": "50000",
    "Refill every": "day", "Models": " gpt-4o \n\ngpt-4o-mini", "Requests at a time": "2" }, "Add");
  await t.sees(t.status("Saved."));
  t.equal(await t.page.evaluate(() => document.activeElement.textContent), "Add group", "the focus");
  const dialog = await ask("Add endpoint");
  t.equal(await t.field("URL", dialog).inputValue(), "https://api.openai.com/v1/chat/completions", "OpenAI's URL");
  await t.field("Provider", dialog).selectOption("Anthropic");
  t.equal(await t.field("URL", dialog).inputValue(), "https://api.anthropic.com/v1/messages", "Anthropic's URL");
  await t.field("Kind", dialog).selectOption("Embeddings");
  await t.field("Provider", dialog).selectOption("Ollama");
  t.equal(await t.field("URL", dialog).inputValue(), "http://localhost:11434/v1/embeddings", "the URL of Ollama's embeddings");
  await t.field("Kind", dialog).selectOption("Realtime");
  t.equal(await t.field("URL", dialog).inputValue(), "", "the URL of sessions");
  await t.field("Kind", dialog).selectOption("Text");
  t.equal(await t.field("Name", dialog).inputValue(), "ollama", "the name");
  await t.check("new-endpoint");
  await t.page.keyboard.press("Escape");
  await done("Add endpoint", { "Provider": "OpenAI", "URL": `${env.provider}/v1/chat/completions`, "API key": env.providerKey,
    "Default model": "gpt-4o" }, "Add");
  await done("Edit gpt-4o", { "Input": "2.50", "Output": "1e1" });
  await done("Add model", { "Model": "gpt-4o-*", "Input": "0.15", "Cached input": "0" }, "Add");
  await t.button("Test openai").click();
  await t.sees(t.status(/^ok 200 in [\d,]+ ms, model gpt-4o$/));
  await done("Edit origins", { "Allowed origins": "https://a.example.com\n https://b.example.com" });
  await done("Edit Stripe", { "API key": "sk_test_1", "Webhook secret": "whsec_1 whsec_2", "Return URLs": "https://a.example.com/" });
  await done("Add price", { "Price ID": "price_1", "Group": "free", "Reset": "true" }, "Add");
  await done("Add price", { "Price ID": "price_2", "Tokens": "1000" }, "Add");
  await wantSaved('{"user_groups":{"free":{"tokens":50000,"max_concurrent":2,"rate_limit":10,"rate_limit_window":60,' +
    '"refill":{"tokens":50000,"every":"day"},"models":["gpt-4o","gpt-4o-mini"]}},' +
    `"providers":{"text":{"endpoints":{"openai":{"url":"${env.provider}/v1/chat/completions","api_key":"${env.providerKey}",` +
    '"default_model":"gpt-4o","bytes_per_token":3,"models":{"gpt-4o":{"input":2.50,"output":1e1},' +
    '"gpt-4o-*":{"input":0.15,"cached_input":0}}}}}},"cors":{"allowed_origins":["https://a.example.com","https://b.example.com"]},' +
    '"auth":{"stripe":{"api_key":"sk_test_1","webhook_secret":["whsec_1","whsec_2"],"return_urls":["https://a.example.com/"],' +
    '"prices":{"price_1":{"group":"free","reset":true},"price_2":{"tokens":1000}}}}}', "the new tenant's config", "forms-new");
  await t.check("new-tenant");

  // Members that are not edited stay as they are written, whatever their names; empty fields remove members.
  await api("PUT", `/${env.tenant}/admin/config`, `{"config":${exotic}}`);
  await t.choose(env.tenant);
  await t.check("config");
  let want = exotic;
  const change = async (from, to, ...by) => {
    want = want.replace(from, () => to);
    await done(...by);
    await wantSaved(want, `after ${by[0]}`);
  };
  await change("", "", /^Edit __proto__$/, {});
  await change('"tokens":5,', '"tokens":6.0,', /^Edit __proto__$/, { "Tokens": "6.0" });
  await change('{"tokens":1e3,"x":1.10}', '{"tokens":1e3,"x":1.10,"rate_limit":7,"rate_limit_window":60}',
    /^Edit a\.b.c<img/, { "Rate limit": "7", "Window": "60" });
  await change(',"rate_limit":7,"rate_limit_window":60', ',"refill":{"tokens":9,"every":3600}',
    /^Edit a\.b.c<img/, { "Rate limit": "", "Window": "", "Refill to": "9", "Refill every": "3600" });
  await t.sees("to 9, each 3,600 s");
  await change(',"refill":{"tokens":9,"every":3600}', "", /^Edit a\.b.c<img/, { "Refill to": "", "Refill every": "" });
  await change('"input":0.50', '"input":0.25', "Edit __proto__, one", { "Input": "0.25" });
  await change('"api_key":"sk-2"', '"api_key":"sk-3"', "Edit a.b/c?", { "API key": "sk-3" });
  await change(',"default_model":"<b>m</b>\\n x"', "", "Edit a.b/c?", { "Default model": "" });
  await change('"zzz":1.0,', '"zzz":1.0,', "Edit one", { "Default model": " gpt-4o " });
  await change('["https://a.example.com"]', '["*"]', "Edit origins", { "Allowed origins": "*" });

  // A key is shown only if it is asked for.
  const key = t.page.getByText("sk-3", { exact: true }).filter({ visible: true });
  t.equal(await key.count(), 0, "keys to see");
  await t.button("Show key of a.b/c?").click();
  await t.sees(key);
  await t.button("Show key of a.b/c?").click();
  await t.misses(key);
  const edited = await ask("Edit a.b/c?");
  t.equal(await t.field("API key", edited).getAttribute("type"), "password", "the field of a key");
  await t.check("endpoint");
  await t.page.keyboard.press("Escape");

  // Faults are shown in the dialog, and change nothing.
  const text = t.page.getByLabel("Config", { exact: true });
  const before = await text.inputValue();
  for (const [name, values, sentence, verb] of [
    [/^Edit __proto__$/, { "Tokens": "50,000" }, "Invalid config: user_groups.__proto__.tokens must be a whole number ≥ 0"],
    [/^Edit __proto__$/, { "Tokens": "-1" }, "Invalid config: user_groups.__proto__.tokens must be a whole number ≥ 0"],
    ["Add group", { "Name": " __proto__ " }, "__proto__ exists already.", "Add"],
    ["Add group", { "Name": " " }, "Enter a name.", "Add"],
    ["Edit one", { "Operator’s key": "mine", "API key": "sk-4" }, "Invalid config: "],
    ["Remove a.b/c?", {}, "", "Cancel"],
  ]) {
    const refused = await fill(name, values, verb);
    if (sentence) {
      await t.sees(sentence, refused);
      for (const [label, value] of Object.entries(values)) t.equal(await t.field(label, refused).inputValue(), value, "what was typed");
      await t.page.keyboard.press("Escape");
    }
    t.equal(await text.inputValue(), before, `the text after ${name}`);
    t.equal(await t.page.evaluate(() => document.activeElement.textContent), await t.button(name).textContent(), "the focus");
  }
  await wantSaved(want, "the config after what was refused");

  // A test asks what is saved, and says so.
  await t.button("Test a.b/c?").click();
  await t.sees(t.alert(/^failed without a response in [\d,]+ ms/));
  await text.fill(before.replace('"gpt-4o"', '"gpt-4o-mini"').replace('"endpoints": {', '"endpoints": {"new": {"url": "http://x.example.com"},'));
  await t.sees("new", t.page.locator("h4"));
  await t.button("Test one").click();
  await t.sees(t.status(/^ok 200 in [\d,]+ ms, model gpt-4oThe endpoint was tested without what is not saved yet\.$/));
  await t.button("Test new").click();
  await t.sees("Save first: a test asks the endpoint as it is saved.");
  await text.fill(before.slice(1));
  await t.sees("The forms are back as soon as the text is JSON.");

  // Other changes of the text are saved along, after that is said.
  await text.fill(before.replace('"tokens": 6.0', '"tokens": 7'));
  await t.button("Make default a.b/c?").click();
  await t.sees("They are saved, too.", t.dialog());
  want = want.replace('"tokens":6.0', '"tokens":7').replace('"default":"one"', '"default":"a.b/c?"');
  await t.button("Make default", t.dialog()).click();
  await t.settled();
  await t.sees(t.status("Saved."));
  await wantSaved(want, "after Make default");
  let sent = t.requests.length;
  await t.button("Make default one").click();
  await t.button("Make default", t.dialog()).dblclick();
  await t.settled();
  t.equal(t.requests.slice(sent).filter((request) => request.startsWith("PUT")).length, 1, "changes of a double click");
  want = want.replace('"default":"a.b/c?"', '"default":"one"');
  await wantSaved(want, "after Make default one");

  // Removing asks. The default endpoint can go.
  want = want.replace('"default":"one",', "").replace(/"one":.*?,(?="a\.b\/c\?")/, "");
  await change("", "", "Remove one", {}, "Remove");
  await change('"__proto__":{"tokens":7,"note":1.10},', "", /^Remove __proto__$/, {}, "Remove");

  // A conflict with somebody else: the change waits in the text.
  const theirs = want.replace('{"big"', '{"theirs":1,"big"');
  await api("PUT", `/${env.tenant}/admin/config`, `{"config":${theirs}}`);
  await done("Edit origins", { "Allowed origins": "https://mine.example.com" });
  const focused = () => t.page.evaluate(() => document.activeElement.textContent);
  await t.until("the focus in a conflict", async () => await focused() === "Compare");
  await t.button("Overwrite with mine").click();
  await t.sees(t.status("Saved."));
  await wantSaved(want.replace('["*"]', '["https://mine.example.com"]'), "after the conflict");

  // A dialog is there again, with what was typed, after the token has ended and the user has signed in again.
  await t.button("Sign out").click();
  await t.enter(env.tenant, env.tenantToken);
  await t.open("Config");
  await api("DELETE", `/${env.tenant}/admin/tokens`);
  await fill("Edit origins", { "Allowed origins": "https://again.example.com" });
  await t.sees(t.alert("Sign in again"));
  await t.check("sign-in-again");
  const { body } = await api("POST", `/${env.tenant}/admin/tokens`);
  await t.signIn(env.tenant, body.adminToken);
  t.equal(await t.field("Allowed origins", t.dialog()).inputValue(), "https://again.example.com", "what was typed");
  await t.button("Save", t.dialog()).click();
  await t.sees(t.status("Saved."));
  await wantSaved(want.replace('["*"]', '["https://again.example.com"]'), "after signing in again");
}, [400, 401, 412]);
