// A page that sells tokens: see docs/payments.md. It runs at any origin that the tenant's config has in
// cors.allowed_origins and, with this page's path, in auth.stripe.return_urls.

const tollgate = "http://localhost:8080/shop"; // the tenant; also in the Content-Security-Policy of index.html
const here = location.origin + location.pathname;
const element = (selector) => document.querySelector(selector);
const say = (text) => (element("#message").textContent = text);

// The key is kept for the way to Stripe and back. Another tab does not have it, and it ends with this one.
const store = sessionStorage;

// call sends a request with the visitor's key, and returns what the response says.
async function call(path, body) {
  const response = await fetch(tollgate + path, {
    method: body ? "POST" : "GET",
    headers: { Authorization: "Bearer " + store.getItem("key") },
    body: body && JSON.stringify(body),
  });
  const content = await response.json();
  if (!response.ok) throw new Error(content.error);
  return content;
}

// during disables a button while it does its work, and says what goes wrong.
const during = (button, work) => async () => {
  button.disabled = true;
  try {
    await work();
  } catch (error) {
    say(error.message);
  }
  button.disabled = false;
};

// showBalance shows what the key has, and returns it as a text that differs after each payment.
async function showBalance() {
  const { group, tokensLeft } = await call("/auth/key");
  element("#balance").textContent = `${tokensLeft} tokens, group ${group}`;
  return `${tokensLeft} ${group}`;
}

async function buy(price) {
  store.setItem("before", await showBalance());
  const { url } = await call("/billing/checkout", { price, successUrl: here + "?paid", cancelUrl: here });
  location.assign(url); // Stripe's page, which leads back here
}

function showPrice({ price, group, tokens }) {
  const button = document.createElement("button");
  button.textContent = group ? `Subscribe to ${group}: ${tokens} tokens in each period` : `Buy ${tokens} tokens`;
  button.onclick = during(button, () => buy(price));
  const item = document.createElement("li");
  item.append(button);
  return item;
}

// awaitPayment waits until the tokens are there: Stripe reports a payment at about the time at which it leads the
// customer back, so the balance may be a moment late.
async function awaitPayment() {
  say("Thank you. Your tokens are on their way.");
  for (let seconds = 0; seconds < 60; seconds++) {
    if ((await showBalance()) !== store.getItem("before")) return say("Thank you. Your tokens are here.");
    await new Promise((wake) => setTimeout(wake, 1000));
  }
  say("Your payment is not confirmed yet. Some take days: the tokens come by themselves.");
}

async function showAccount() {
  await showBalance();
  const { prices } = await call("/billing/prices");
  element("#prices").replaceChildren(...prices.map(showPrice));
  element("form").hidden = true;
  element("main").hidden = false;
}

element("form").onsubmit = (event) => {
  event.preventDefault();
  store.setItem("key", element("input").value.trim());
  say("");
  showAccount().catch((error) => say(error.message));
};
element("#portal").onclick = during(element("#portal"), async () => {
  location.assign((await call("/billing/portal", { returnUrl: here })).url);
});
element("#leave").onclick = () => {
  store.clear();
  location.assign(here);
};

if (store.getItem("key")) {
  try {
    await showAccount();
    if (location.search === "?paid") {
      history.replaceState(null, "", here); // so that a reload does not wait again
      await awaitPayment();
    }
  } catch (error) {
    say(error.message);
  }
}
