// Makes the elements of the page. What comes from users becomes text, never markup.

// el returns an element with attributes: true is an empty value, false and undefined leave one out, and `value` is that
// of a control. Strings among the children become text; empty ones are left out.
export const el = (tag, props, ...children) => build(document.createElement(tag), props, children);

export const svg = (tag, props, ...children) =>
  build(document.createElementNS('http://www.w3.org/2000/svg', tag), props, children);

function build(node, props = {}, children) {
  for (const [name, value] of Object.entries(props)) {
    if (name === 'value') node.value = value;
    else if (value !== false && value !== undefined) node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child || child === 0));
  return node;
}

let lastID = 0;

export const newID = () => `id-${++lastID}`;

// button returns a button that runs action once at a time; once says how. The second click of a double click does
// nothing, even after the first has done everything.
export function button(name, action, props = {}) {
  const node = el('button', { type: 'button', ...props }, name);
  node.addEventListener('click', (event) => event.detail > 1 || once(node, action));
  return node;
}

// rowButton returns a button whose name ends in words for screen readers: to what it belongs.
export const rowButton = (verb, what, action, props) =>
  button([verb, el('span', { class: 'visually-hidden' }, ` ${what}`)], action, props);

const running = new WeakSet();

// once runs action, which may be async, unless it still runs for the same element, and shows its error near that.
export async function once(node, action) {
  if (running.has(node)) return;
  running.add(node);
  node.setAttribute('aria-busy', 'true'); // not disabled, which would take the focus away
  try {
    clearMessages(node);
    await action();
  } catch (error) {
    showError(node, error);
  } finally {
    running.delete(node);
    node.removeAttribute('aria-busy');
  }
}

// field returns a labelled control: an input unless tag says select or textarea. props are its attributes; a form's
// values have its name. hint is a sentence below. options of a select are strings or [value, text].
export function field(label, { tag = 'input', hint, options = [], value, ...props } = {}) {
  const id = newID();
  const hintID = hint && `${id}-hint`;
  const control = el(tag, { id, 'aria-describedby': hintID, autocomplete: 'off', ...props },
    options.map((option) => el('option', { value: [option].flat()[0] }, [option].flat().at(-1))));
  if (value !== undefined) control.value = value;
  return el('div', { class: 'field' }, el('label', { for: id }, label), control,
    hint && el('p', { id: hintID, class: 'hint' }, hint));
}

export const controlOf = (field) => field.querySelector('input, select, textarea');

// form returns a form of fields whose button, with the name verb, runs action(values, form) as once does. values are
// strings by the controls' names.
export function form(fields, verb, action) {
  const submit = el('button', { type: 'submit', class: 'primary' }, verb);
  submit.addEventListener('click', (event) => event.detail > 1 && event.preventDefault());
  const node = el('form', { autocomplete: 'off' }, fields, el('div', { class: 'actions' }, submit), messages());
  node.addEventListener('submit', (event) => {
    event.preventDefault();
    once(node, () => action(Object.fromEntries(new FormData(node)), node));
  });
  return node;
}

// messages returns the place for results and errors. They are shown in the first one of the nearest ancestor.
export const messages = () => el('div', { class: 'messages' });

export function messagesOf(node) {
  for (let at = node; at; at = at.parentElement) {
    const found = at.matches('.messages') ? at : at.querySelector('.messages');
    if (found) return found;
  }
  return document.querySelector('main .messages');
}

export function clearMessages(node) { messagesOf(node).replaceChildren(); }

// showStatus says that something was done: sentences (strings or nodes), one a line.
export function showStatus(node, ...sentences) {
  messagesOf(node).replaceChildren(el('div', { role: 'status' }, sentences.map((sentence) => el('p', {}, sentence))));
}

// showError shows an error: the server's sentence as it came, further ones one a line, and the request's ID. show makes
// a string or a node of a sentence. An AbortError is not shown.
export function showError(node, error, show = (sentence) => sentence) {
  if (error.name === 'AbortError') return;
  if (error.status === undefined) console.error(error); // a fault of the page
  const further = (error.errors ?? []).filter((sentence) => sentence !== error.message);
  messagesOf(node).replaceChildren(el('div', { role: 'alert' },
    el('p', {}, show(error.message)),
    further.length > 0 && el('ul', {}, further.map((sentence) => el('li', {}, show(sentence)))),
    error.retryAfter && el('p', {}, `Try again in ${error.retryAfter} s.`),
    error.requestId && el('p', { class: 'id' }, 'Request ID: ', el('code', {}, error.requestId))));
}

export const inputError = (sentence) => Object.assign(new Error(sentence), { status: 0 });

// dialog shows a modal dialog with a form, and returns, when it is closed, whether action has succeeded. The focus
// returns to where it was.
export function dialog({ title, text, fields = [], verb, action, danger = false }) {
  const id = newID();
  let done = false;
  const content = form(fields, verb, async (values, node) => {
    await action?.(values, node);
    done = true;
    box.close();
  });
  const submit = content.querySelector('[type=submit]');
  if (danger) submit.className = 'danger';
  submit.after(button('Cancel', () => box.close(), { autofocus: danger && fields.length === 0 }));
  const box = el('dialog', { 'aria-labelledby': id }, el('h2', { id }, title),
    [text ?? []].flat().map((paragraph) => el('p', {}, paragraph)), content);
  document.body.append(box);
  const before = document.activeElement;
  before?.removeAttribute('aria-busy'); // the button waits for the user now
  box.showModal();
  return new Promise((resolve) => box.addEventListener('close', () => {
    box.remove();
    if (before?.isConnected) before.focus();
    resolve(done);
  }));
}

// copyButton returns a button that copies what text returns, also without HTTPS, where navigator.clipboard is absent.
export function copyButton(text) {
  const node = button('Copy', async () => {
    await copy(text(), node);
    node.textContent = 'Copied';
    setTimeout(() => { node.textContent = 'Copy'; }, 2000);
  });
  return node;
}

async function copy(text, near) {
  if (navigator.clipboard) {
    try {
      return await navigator.clipboard.writeText(text);
    } catch { /* not permitted: the old way may be */ }
  }
  const area = el('textarea', { 'aria-hidden': 'true', class: 'offscreen', value: text });
  near.after(area); // inside a modal dialog nothing outside it can be selected
  area.select();
  const copied = document.execCommand('copy');
  area.remove();
  near.focus();
  if (!copied) throw new Error('This browser does not copy: select the text.');
}

const amounts = new Intl.NumberFormat('en', { maximumFractionDigits: 1 });

export const number = (n) => amounts.format(n);

// mask returns an API key with most of it hidden.
export const mask = (key) => key.slice(0, 5) + '…' + key.slice(-4);

const times = new Intl.DateTimeFormat('en', { dateStyle: 'medium', timeStyle: 'short' });

// time returns an element with a time (RFC 3339) in the reader's zone, and in UTC on hover.
export function time(text) {
  const at = new Date(text);
  if (Number.isNaN(at.getTime())) return el('span', {}, String(text));
  const title = at.toISOString().replace('T', ' ').replace('Z', ' UTC');
  return el('time', { datetime: text, title }, times.format(at));
}

// table returns a table of rows of cells, each a string or a node. The first one heads its row. numeric has the indexes
// of columns that are set to the right.
export function table(caption, heads, rows, { numeric = [], hideCaption = false } = {}) {
  const right = (i) => ({ class: numeric.includes(i) ? 'number' : undefined });
  return el('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': caption }, el('table', {},
    el('caption', { class: hideCaption ? 'visually-hidden' : undefined }, caption),
    el('thead', {}, el('tr', {}, heads.map((head, i) => el('th', { scope: 'col', ...right(i) }, head)))),
    el('tbody', {}, rows.map((cells) => el('tr', {}, cells.map((cell, i) =>
      el(i === 0 ? 'th' : 'td', { scope: i === 0 ? 'row' : undefined, ...right(i) }, cell)))))));
}
