// Fields for members of the config. What nobody edits stays in the text as it is written there.

import { controlOf, el, field, inputError, messages, number, rowButton, table } from './dom.js';
import { find, names, parse, remove, set, valueOf } from './json.js';

// A Config reads a text. A path is an array of names.
export class Config {
  constructor(text) {
    this.text = text;
    this.root = parse(text);
  }

  node(path) { return find(this.root, path); }

  names(path) { return names(this.node(path)); }

  // shown returns the content of a string, anything else as it is written, and "" for what is absent.
  shown(path) {
    const node = this.node(path);
    if (node?.kind === 'string') return valueOf(this.text, node);
    return node ? this.text.slice(node.start, node.end) : '';
  }

  // list returns the items of an array, or a single value as one of it.
  list(path) { return [valueOf(this.text, this.node(path)) ?? []].flat(); }
}

const numbers = /^-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?$/;

// kinds are how what was entered is written as JSON, if not as a string; how the items of an array are joined; and
// attributes of the control. Numbers stay as entered: JSON.parse would lose digits. A secret may be several.
const kinds = {
  text: {},
  number: { control: { inputmode: 'decimal', class: 'short' }, write: (value, label) => {
    if (numbers.test(value)) return value;
    throw inputError(`${label}: ${value} is not a number. Write it like 50000 or 0.25.`);
  } },
  word: { write: (value) => value === 'true' || numbers.test(value) ? value : JSON.stringify(value) },
  lines: { join: '\n', control: { tag: 'textarea', rows: 4 },
    write: (value) => JSON.stringify(value.split('\n').map((line) => line.trim()).filter(Boolean)) },
  secret: { join: ' ', control: { type: 'password', autocomplete: 'new-password' },
    write: (value) => JSON.stringify(/\s/.test(value) ? value.split(/\s+/) : value) },
};

// member describes a member: the label of its field, its name or path, its kind. props are those of field.
export function member(label, name, kind = 'text', props = {}) {
  return { label, path: [name].flat(), kind: kinds[kind], ...props };
}

// create returns the text with a new object at a path.
export function create(text, path) {
  const name = path.at(-1);
  if (!name || find(parse(text), path)) throw inputError(name ? `${name} exists already.` : 'Enter a name.');
  return set(text, path, '{}');
}

// bind returns fields for members of the object at base, and edit(text, values, at), which returns the text with what
// was entered. Without a base the object, at the path `at`, is new. An empty field removes its member.
export function bind(members, config, base) {
  const shown = (path, { join }) => join ? config.list(path).join(join) : config.shown(path);
  const fields = members.map((one, i) => fieldOf(one, `m${i}`, base ? shown([...base, ...one.path], one.kind) : ''));
  const before = fields.map((one) => controlOf(one).value.trim()); // without the line breaks that an input cannot have
  const edit = (text, values, at = base) => {
    members.forEach(({ label, path, kind: { write = (value) => JSON.stringify(value) } }, i) => {
      const value = values[`m${i}`].trim();
      if (value === before[i]) return;
      const whole = [...at, ...path];
      text = value ? set(text, whole, write(value, label)) : drop(text, whole, at.length);
    });
    return text;
  };
  return { fields, edit };
}

// drop removes a member, and the objects below the first `depth` names of its path that it leaves empty.
function drop(text, path, depth) {
  const rest = remove(text, path);
  const parent = path.slice(0, -1);
  const isEmpty = parent.length > depth && find(parse(rest), parent)?.members?.length === 0;
  return isEmpty ? drop(rest, parent, depth) : rest;
}

// fieldOf returns a field for a member, with the name by which a form's values name it.
export function fieldOf({ label, kind, path, options, ...props }, name, value) {
  if (options) props.tag = 'select';
  if (options) props.options = options.flat().includes(value) ? options : [...options, value];
  return field(label, { spellcheck: 'false', autocapitalize: 'none', ...kind.control, ...props, name, value });
}

// masked returns dots for a secret, with a button that shows it and hides it again.
export function masked(secret, what) {
  if (!secret) return 'none';
  const dots = '••••••••';
  const text = el('code', {}, dots);
  const show = rowButton('Show', what, () => {
    const isShown = text.textContent === dots;
    text.textContent = isShown ? secret : dots;
    show.setAttribute('aria-pressed', isShown);
  }, { 'aria-pressed': 'false' });
  return [text, ' ', show];
}

// section returns a section with a heading, buttons beside it, and a place for messages.
export function section(title, buttons, ...content) {
  return el('section', {}, el('div', { class: 'head' }, el('h2', {}, title), el('div', { class: 'actions' }, buttons)),
    messages(), content);
}

// list returns a table whose last column has buttons, or a sentence if it has no rows yet.
export function list(title, heads, numeric, rows, sentence) {
  return rows.length ? table(title, [...heads, 'Change'], rows, { numeric, hideCaption: true })
    : el('p', { class: 'faint' }, sentence);
}

// amount returns a number of the text with separators, or as it is if it is written in an unusual way.
export const amount = (text) => /^\d{1,15}$/.test(text) ? number(Number(text)) : text;

// labelOf returns the name of a member as a label.
export const labelOf = (name) => name[0].toUpperCase() + name.slice(1).replaceAll('_', ' ');
