// Makes the elements of the page. What comes from users becomes text, never markup.

// el returns an element. props are attributes (true: without a value; false or undefined: left out), but for `on`, an
// object of event listeners, and `value` of controls. Strings among the children become text.
export function el(tag, props = {}, ...children) {
  const node = build(document.createElement(tag), props);
  node.append(...children.flat().filter((child) => child !== undefined && child !== null && child !== false));
  return node;
}

// svg does what el does for a drawing.
export function svg(tag, props = {}, ...children) {
  const node = build(document.createElementNS('http://www.w3.org/2000/svg', tag), props);
  node.append(...children.flat());
  return node;
}

function build(node, props) {
  for (const [name, value] of Object.entries(props)) {
    if (name === 'on') for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    else if (name === 'value') node.value = value;
    else if (value === true) node.setAttribute(name, '');
    else if (value !== false && value !== undefined) node.setAttribute(name, value);
  }
  return node;
}

let lastID = 0;

export function newID() { return `id-${++lastID}`; }

// button returns a button that runs action, which may be async. While that runs, further clicks do nothing. Its error
// is shown by the nearest messages. Attributes of props are set, too.
export function button(name, action, props = {}) {
  const node = el('button', { type: 'button', ...props }, name);
  node.addEventListener('click', () => once(node, action));
  return node;
}

const running = new WeakSet();

// once runs action unless it still runs for the same element, and shows its error near that.
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

// field returns a labelled control: an input unless props.tag says select or textarea. props are its attributes; its
// name is how a form's values name it. hint is a sentence below. options of a select are strings or [value, text].
export function field(label, { tag = 'input', hint, options, value, ...props } = {}) {
  const id = newID();
  const hintID = hint && `${id}-hint`;
  const control = el(tag, { id, 'aria-describedby': hintID, autocomplete: 'off', ...props },
    (options ?? []).map((option) => {
      const [optionValue, text] = Array.isArray(option) ? option : [option, option];
      return el('option', { value: optionValue }, text);
    }));
  if (value !== undefined) control.value = value;
  return el('div', { class: 'field' }, el('label', { for: id }, label), control,
    hint && el('p', { id: hintID, class: 'hint' }, hint));
}

// controlOf returns the control of a field.
export function controlOf(field) { return field.querySelector('input, select, textarea'); }

// form returns a form of fields whose button, with the name verb, runs action(values, form). values are strings by the
// controls' names. A second submission waits until the first has ended.
export function form(fields, verb, action, props = {}) {
  const node = el('form', { autocomplete: 'off', ...props }, fields,
    el('div', { class: 'actions' }, el('button', { type: 'submit', class: 'primary' }, verb)), messages());
  node.addEventListener('submit', (event) => {
    event.preventDefault();
    once(node, () => action(Object.fromEntries(new FormData(node)), node));
  });
  return node;
}

// messages returns the place for results and errors. showError and showStatus use the first one in the nearest ancestor
// that has one.
export function messages() { return el('div', { class: 'messages' }); }

export function messagesOf(node) {
  for (let at = node; at; at = at.parentElement) {
    const found = at.matches('.messages') ? at : at.querySelector('.messages');
    if (found) return found;
  }
  return document.querySelector('.messages') ?? document.querySelector('main:not([hidden])');
}

export function clearMessages(node) {
  messagesOf(node).replaceChildren();
}

// showStatus says that something was done: sentences (strings or nodes), one a line.
export function showStatus(node, ...sentences) {
  messagesOf(node).replaceChildren(el('div', { role: 'status' }, sentences.map((sentence) => el('p', {}, sentence))));
}

// showError shows an error: the server's sentence as it came, further ones one a line, and the request's ID. Each
// sentence is what show makes of it, a string or a node. An aborted request is no error.
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

// inputError returns an error for what the user has entered.
export function inputError(sentence) { return Object.assign(new Error(sentence), { status: 0 }); }

// dialog shows a modal dialog and returns, when it is closed, whether its action has succeeded. The button verb runs
// action(values, form), whose error is shown in it. Escape and Cancel close it. The focus returns to where it was.
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
  submit.after(button('Cancel', () => box.close()));
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
export function copyButton(text, name = 'Copy') {
  const node = button(name, async () => {
    await copy(text(), node);
    node.textContent = 'Copied';
    setTimeout(() => { node.textContent = name; }, 2000);
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
  if (!copied) throw new Error('This browser does not let a page copy: select the text and copy it.');
}

const amounts = new Intl.NumberFormat('en', { maximumFractionDigits: 1 });

// number returns an amount with separators.
export function number(n) { return amounts.format(n); }

// mask returns an API key with most of it hidden.
export function mask(key) { return key.slice(0, 5) + '…' + key.slice(-4); }

const times = new Intl.DateTimeFormat('en', { dateStyle: 'medium', timeStyle: 'short' });

// time returns an element with a time (RFC 3339) in the reader's zone, and in UTC on hover.
export function time(text) {
  const at = new Date(text);
  if (Number.isNaN(at.getTime())) return el('span', {}, String(text));
  const title = at.toISOString().replace('T', ' ').replace('Z', ' UTC');
  return el('time', { datetime: text, title }, times.format(at));
}

// table returns a table with a caption, heads, and rows of cells, each a string or a node. The first cell of a row
// heads it. Columns in numeric (indexes) are set to the right.
export function table(caption, heads, rows, { numeric = [], hideCaption = false } = {}) {
  const right = (i) => ({ class: numeric.includes(i) ? 'number' : undefined });
  return el('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': caption }, el('table', {},
    el('caption', { class: hideCaption ? 'visually-hidden' : undefined }, caption),
    el('thead', {}, el('tr', {}, heads.map((head, i) => el('th', { scope: 'col', ...right(i) }, head)))),
    el('tbody', {}, rows.map((cells) => el('tr', {}, cells.map((cell, i) =>
      el(i === 0 ? 'th' : 'td', { scope: i === 0 ? 'row' : undefined, ...right(i) }, cell)))))));
}
