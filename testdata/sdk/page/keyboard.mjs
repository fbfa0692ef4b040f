// The way of somebody without a mouse: sign in, create a key, top it up, and think better of revoking it. What has the
// focus can be seen, and a dialog gives it back.
import { api, env, walk } from "./browser.mjs";

// look returns what has the focus, and fails if that cannot be seen.
async function look(t) {
  const focus = await t.page.evaluate(() => {
    const at = document.activeElement;
    if (!at || at === document.body) return "";
    const { outlineStyle, outlineWidth, boxShadow } = getComputedStyle(at);
    const { width, height, bottom, top } = at.getBoundingClientRect();
    const marked = outlineStyle !== "none" && parseFloat(outlineWidth) >= 1 || boxShadow !== "none";
    const inside = width > 0 && height > 0 && bottom > 0 && top < innerHeight;
    return { text: at.outerHTML.slice(0, 150), seen: marked && inside };
  });
  if (focus && !focus.seen) throw new Error(`the focus cannot be seen at ${focus.text}`);
  return focus.text ?? "nothing";
}

const focused = (locator) => locator.evaluate((element) => element === document.activeElement);

// reach presses Tab until the focus is where it is wanted.
async function reach(t, locator) {
  await locator.waitFor();
  const stops = [];
  for (let i = 0; i < 80; i++) {
    if (await focused(locator)) return;
    await t.page.keyboard.press("Tab");
    stops.push(await look(t));
  }
  throw new Error(`Tab does not lead to ${locator}, but to\n${stops.join("\n")}`);
}

async function type(t, locator, text) {
  await reach(t, locator);
  await t.page.keyboard.type(text);
}

async function press(t, locator, key = "Enter") {
  await reach(t, locator);
  await t.page.keyboard.press(key);
}

await walk(async (t) => {
  const balance = async (key) => (await api("GET", `/${env.tenant}/admin/keys/${key}`)).body.tokensLeft;
  await t.goto();
  await t.button("Sign in").waitFor();
  await type(t, t.field("Token"), env.operator);
  await t.page.keyboard.press("Enter");
  await t.choices().first().waitFor();
  const tenants = t.field("Tenant", t.page.locator("header"));
  await type(t, tenants, env.tenant); // a select takes the first option that begins so
  t.equal(await tenants.inputValue(), env.tenant, "the tenant");
  await press(t, t.choices().filter({ hasText: "Users" }));
  await t.field("User or key").waitFor();

  // A new key.
  await press(t, t.button("New key"));
  await type(t, t.field("User ID"), "typist");
  await type(t, t.field("Group"), "free");
  await type(t, t.field("Tokens"), "700");
  await press(t, t.button("Create key"));
  await t.sees(/user_[0-9a-f-]{36}/);
  const [key] = /user_[0-9a-f-]{36}/.exec(await t.page.locator("body").innerText());
  await press(t, t.button("Copy"));
  await t.until("the key is copied", async () => await t.clipboard() === key);
  t.equal(await balance(key), 700, "the balance");
  if (await t.dialog().count()) { // where the key is shown once
    await t.page.keyboard.press("Escape");
    await t.misses(t.dialog());
    await look(t);
  }

  // A top-up.
  await type(t, t.field("User or key"), "typist");
  await t.page.keyboard.press("Enter");
  await t.settled();
  await press(t, t.button("Top up"));
  await type(t, t.field("Tokens"), "55");
  await type(t, t.field("Reason"), "by hand");
  await t.page.keyboard.press("Enter");
  await t.until("a balance of 755", async () => await balance(key) === 755);
  await t.sees(/755/);

  // A dialog closes with Escape, and with Cancel if it has that; either way nothing is done, and the focus returns.
  const opener = t.button("Revoke");
  for (const close of [() => t.page.keyboard.press("Escape"), () => press(t, t.button("Cancel", t.dialog()))]) {
    await press(t, opener);
    await t.dialog().waitFor();
    const focus = () => t.dialog().evaluate((dialog) => {
      const at = document.activeElement;
      return at === document.body ? "the browser's" : dialog.contains(at) ? "the dialog's" : at.outerHTML;
    });
    t.equal(await focus(), "the dialog's", "the focus");
    for (let i = 0; i < 6; i++) {
      await t.page.keyboard.press("Tab");
      t.equal(["the dialog's", "the browser's"].includes(await focus()), true, `the focus is ${await focus()}`);
    }
    await close();
    await t.misses(t.dialog());
    t.equal(await focused(opener), true, "the focus returns to the button");
    await look(t);
  }
  t.equal(await balance(key), 755, "the balance of the key that is not revoked");

  // A dialog whose button has the focus first would be dangerous to whom presses Enter twice.
  await press(t, opener);
  await t.dialog().waitFor();
  await press(t, t.button("Revoke", t.dialog()), " ");
  await t.until("a key that is gone", async () => await balance(key) === undefined);
  await t.misses(t.dialog());

  await press(t, t.button("Sign out"));
  await t.button("Sign in").waitFor();
  await type(t, t.field("Token"), "x");
});
