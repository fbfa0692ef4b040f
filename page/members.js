// Fields for members of the config. What nobody edits stays in the text as it is written there.

import { button, controlOf, el, field, messages, number } from './dom.js';
import { find, names, parse, remove, set, valueOf } from './json.js';

// A Config reads a text. A path is an array of names.
export class Config {
  constructor(text) {
    this.text = text;
    this.root = parse(text);
  }

  node(path) { return find(this.root, path); }

  value(path) { return valueOf(this.text, this.node(path)); }

  names(path) { return names(this.node(path)); }

  // source returns a value as it is written, and "" for what is absent.
  source(path) {
    const node = this.node(path);
    return node ? this.text.slice(node.start, node.end) : '';
  }

  // shown returns the content of a string, and what source does of anything else.
  shown(path) { return this.node(path)?.kind === 'string' ? this.value(path) : this.source(path); }

  // list returns the strings of an array, or one string that stands for an array of it.
  list(path) { return [this.value(path) ?? []].flat().filter((item) => typeof item === 'string'); }

  // joined returns what list does in one string, or what shown does if there is more than list returns.
  joined(path, separator) {
    const list = this.list(path);
    return list.length === (this.node(path)?.items?.length ?? list.length) ? list.join(separator) : this.shown(path);
  }
}

const numbers = /^-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?$/;

// inputError returns an error of what was entered, which is no fault of the page.
export function inputError(sentence) { return Object.assign(new Error(sentence), { status: 0 }); }

const show = (config, path) => config.shown(path);
const password = { type: 'password', autocomplete: 'new-password' };

// kinds are how members are shown in a control, and how what was entered is written as JSON.
const kinds = {
  text: { show, write: (value) => JSON.stringify(value) },
  secret: { show, write: (value) => JSON.stringify(value), control: password },
  number: { show, write: numberOf, control: { inputmode: 'decimal' } },
  period: { show, write: (value) => numbers.test(value) ? value : JSON.stringify(value) },
  lines: {
    show: (config, path) => config.joined(path, '\n'),
    write: (value) => JSON.stringify(value.split('\n').map((line) => line.trim()).filter(Boolean)),
    control: { tag: 'textarea', rows: 4, spellcheck: 'false' },
  },
  secrets: {
    show: (config, path) => config.joined(path, ' '),
    write: (value) => JSON.stringify(/\s/.test(value) ? value.split(/\s+/) : value),
    control: password,
  },
  flag: {
    show: (config, path) => config.shown(path) === 'true' ? 'true' : '',
    write: () => 'true',
    control: { type: 'checkbox' },
  },
};

// numberOf returns a number as it was entered: JSON.parse would lose digits.
function numberOf(text, label) {
  if (!numbers.test(text)) throw inputError(`${label}: ${text} is not a number. Write it like 50000 or 0.25.`);
  return text;
}

// member describes a member: the label of its field, its name or path, and how it is edited. props are those of field,
// and preset (what a new object has) and more (a node below the control).
export function member(label, name, kind = 'text', props = {}) { return { label, path: [name].flat(), kind, ...props }; }

// create returns the text with a new object at a path.
export function create(text, path) {
  if (find(parse(text), path)) throw inputError(`${path.at(-1)} exists already.`);
  return set(text, path, '{}');
}

// bind returns fields for members of the object at base, and edit(text, values, at), which returns the text with what
// was entered. Without a base the object, at the path `at`, is new. An empty field removes its member.
export function bind(config, base, members) {
  const before = members.map(({ path, kind }) => base ? kinds[kind].show(config, [...base, ...path]) : '');
  return {
    fields: members.map((one, i) => fieldOf(one, `m${i}`, base ? before[i] : one.preset ?? '')),
    edit(text, values, at = base) {
      members.forEach(({ label, path, kind }, i) => {
        const value = (values[`m${i}`] ?? '').trim();
        if (value === before[i].trim()) return;
        const whole = [...at, ...path];
        text = value === '' ? drop(text, whole, at.length) : set(text, whole, kinds[kind].write(value, label));
      });
      return text;
    },
  };
}

// drop removes a member, and the objects below the first `depth` names of its path that it leaves empty.
function drop(text, path, depth) {
  const rest = remove(text, path);
  const parent = path.slice(0, -1);
  const isEmpty = parent.length > depth && find(parse(rest), parent)?.members?.length === 0;
  return isEmpty ? drop(rest, parent, depth) : rest;
}

// fieldOf returns a field for a member, with the name by which a form's values name it.
export function fieldOf({ label, path, kind, preset, more, options, ...props }, name, value) {
  const { control: own } = kinds[kind];
  const all = { spellcheck: 'false', autocapitalize: 'none', ...own, ...props, name };
  if (options) all.options = options.flat().includes(value) ? options : [...options, value];
  const node = field(label, { ...all, tag: options ? 'select' : own?.tag, value: kind === 'flag' ? 'true' : value });
  const control = controlOf(node);
  if (kind === 'flag') control.checked = value === 'true';
  if (own === password) control.after(showButton(label, (isShown) => { control.type = isShown ? 'text' : 'password'; }));
  node.append(more ?? '');
  return node;
}

// rowButton returns a button that says for a screen reader to what it belongs.
export function rowButton(verb, what, action, props) {
  return button([verb, el('span', { class: 'visually-hidden' }, ` ${what}`)], action, props);
}

// showButton returns a button that shows a secret and hides it again.
function showButton(what, show) {
  const node = rowButton('Show', what, () => {
    const isShown = node.getAttribute('aria-pressed') !== 'true';
    node.setAttribute('aria-pressed', isShown);
    show(isShown);
  }, { 'aria-pressed': 'false' });
  return node;
}

// masked returns dots for a secret, with a button that shows it.
export function masked(secret, what) {
  const dots = '••••••••';
  const text = el('code', {}, dots);
  return [text, ' ', showButton(what, (isShown) => { text.textContent = isShown ? secret : dots; })];
}

// section returns a section with a heading, an action beside it, and a place for messages.
export function section(title, action, ...content) {
  return el('section', {}, el('div', { class: 'head' }, el('h2', {}, title), action), messages(), content.flat(2));
}

// amount returns a number of the text with separators, or as it is if it is written in an unusual way.
export const amount = (text) => /^\d{1,15}$/.test(text) ? number(Number(text)) : text;

// label returns the name of a member as a label.
export const label = (name) => name[0].toUpperCase() + name.slice(1).replaceAll('_', ' ');
