// Fields for members of the config. What nobody edits stays in the text as it is written there.

import { controlOf, el, field, inputError, number, table } from './dom.js';
import { find, names, parse, remove, set, valueOf } from './json.js';

// A Config reads a text. A path is an array of names.
export class Config {
  constructor(text) {
    this.text = text;
    this.root = parse(text);
  }

  names(path) { return names(find(this.root, path)); }

  // shown returns the content of a string, anything else as it is written, and "" for what is absent.
  shown(path) {
    const node = find(this.root, path);
    if (node?.kind === 'string') return valueOf(this.text, node);
    return node ? this.text.slice(node.start, node.end) : '';
  }

  // list returns the items of an array. A single value is one.
  list(path) { return [valueOf(this.text, find(this.root, path)) ?? []].flat(); }
}

const literal = /^(?:true|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?)$/;

// kinds are how an entry is written as JSON, how the items of an array are joined, and attributes of the control. A
// number stays as entered, since JSON.parse would lose digits; the server refuses another entry.
const kinds = {
  text: { write: (value) => JSON.stringify(value) },
  number: { inputmode: 'decimal', class: 'short',
    write: (value) => literal.test(value) ? value : JSON.stringify(value) },
  lines: { tag: 'textarea', rows: 4, join: '\n',
    write: (value) => JSON.stringify(value.split('\n').map((line) => line.trim()).filter(Boolean)) },
  secret: { type: 'password', autocomplete: 'new-password', join: ' ',
    write: (value) => JSON.stringify(/\s/.test(value) ? value.split(/\s+/) : value) },
};

// member describes a member: the label of its field, its name or path, its kind. props are those of field.
export function member(label, name, kind = 'text', props = {}) {
  return { label, path: [name].flat(), ...kinds[kind], ...props };
}

// nameField returns the field for the name of a new object, which create reads.
export function nameField(label, hint) {
  return field(label, { name: 'name', required: true, spellcheck: 'false', autocapitalize: 'none', hint });
}

// create returns the text with a new object in the one at place.
export function create(text, place, members, values) {
  const name = values.name.trim();
  const at = [...place, name];
  if (!name || find(parse(text), at)) throw inputError(name ? `${name} exists already.` : 'Enter a name.');
  return bind(members).edit(set(text, at, '{}'), values, at);
}

// bind returns fields for members of the object at base, and edit(text, values, at), which returns the text with what
// was entered. An empty field removes its member.
export function bind(members, config = new Config('{}'), base = []) {
  const fields = members.map(({ label, path, join, write, options, ...props }) => {
    const at = [...base, ...path];
    const value = join ? config.list(at).join(join) : config.shown(at);
    if (options) Object.assign(props, { tag: 'select', options: withValue(options, value) });
    return field(label, { spellcheck: 'false', autocapitalize: 'none', ...props, name: label, value });
  });
  const before = fields.map((one) => controlOf(one).value.trim()); // without the line breaks that an input cannot have
  const edit = (text, values, at = base) => members.reduce((changed, { label, path, write }, i) => {
    const value = values[label].trim();
    if (value === before[i]) return changed;
    return value ? set(changed, [...at, ...path], write(value)) : drop(changed, at, path);
  }, text);
  return { fields, edit };
}

const withValue = (options, value) => options.flat().includes(value) ? options : [...options, value];

// drop removes a member, and the object around it that a longer path leaves empty.
function drop(text, base, path) {
  const rest = remove(text, [...base, ...path]);
  const parent = [...base, ...path.slice(0, -1)];
  return path.length > 1 && names(find(parse(rest), parent)).length === 0 ? remove(rest, parent) : rest;
}

// section returns a section with a heading, and buttons beside it.
export function section(title, buttons, ...content) {
  return el('section', {}, el('div', { class: 'head' }, el('h2', {}, title), el('div', { class: 'actions' }, buttons)),
    content);
}

// list returns a table whose last column has buttons, or a sentence if it has no rows yet.
export function list(title, heads, numeric, rows, sentence) {
  return rows.length ? table(title, [...heads, 'Change'], rows, { numeric, hideCaption: true })
    : el('p', { class: 'faint' }, sentence);
}

// amount returns a number of the text with separators, or as it is if it is written in an unusual way.
export const amount = (text) => /^\d{1,15}$/.test(text) ? number(Number(text)) : text;
