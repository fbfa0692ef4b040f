// Fields for members of the config. What nobody edits stays in the text as it is written there.

import { button, controlOf, el, field, inputError, messages, number, table } from './dom.js';
import { find, names, parse, remove, set, valueOf } from './json.js';

// A Config reads a text. A path is an array of names.
export class Config {
  constructor(text) {
    this.text = text;
    this.root = parse(text);
  }

  node(path) { return find(this.root, path); }

  names(path) { return names(this.node(path)); }

  // source returns a value as it is written, "" for an absent one.
  source(path) {
    const node = this.node(path);
    return node ? this.text.slice(node.start, node.end) : '';
  }

  // shown returns the content of a string, and what source does of anything else.
  shown(path) { return this.node(path)?.kind === 'string' ? valueOf(this.text, this.node(path)) : this.source(path); }

  // list returns the items of an array, or a single value as one of it.
  list(path) { return [valueOf(this.text, this.node(path)) ?? []].flat(); }
}

const numbers = /^-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?$/;
const lines = (text) => text.split('\n').map((line) => line.trim()).filter(Boolean);
const show = (config, path) => config.shown(path);

// kinds are how members are shown in a control, and how what was entered is written as JSON. Numbers stay as entered:
// JSON.parse would lose digits. A secret may be several, with spaces between.
const kinds = {
  text: { show, write: (value) => JSON.stringify(value) },
  number: { show, control: { inputmode: 'decimal', class: 'short' }, write: (value, label) => {
    if (numbers.test(value)) return value;
    throw inputError(`${label}: ${value} is not a number. Write it like 50000 or 0.25.`);
  } },
  period: { show, control: { class: 'short' }, write: (value) => numbers.test(value) ? value : JSON.stringify(value) },
  lines: { show: (config, path) => config.list(path).join('\n'), control: { tag: 'textarea', rows: 4 },
    write: (value) => JSON.stringify(lines(value)) },
  secret: { show: (config, path) => config.list(path).join(' '),
    control: { type: 'password', autocomplete: 'new-password' },
    write: (value) => JSON.stringify(/\s/.test(value) ? value.split(/\s+/) : value) },
  flag: { show: (config, path) => config.source(path) === 'true' ? 'true' : '', control: { type: 'checkbox' },
    write: () => 'true' },
};

// member describes a member: the label of its field, its name or path, and how it is edited. props are those of field,
// and preset (what a new object has) and more (a node below the control).
export const member = (label, name, kind = 'text', props = {}) => ({ label, path: [name].flat(), kind, ...props });

// create returns the text with a new object at a path.
export function create(text, path) {
  const name = path.at(-1);
  if (!name || find(parse(text), path)) throw inputError(name ? `${name} exists already.` : 'Enter a name.');
  return set(text, path, '{}');
}

// bind returns fields for members of the object at base, and edit(text, values, at), which returns the text with what
// was entered. Without a base the object, at the path `at`, is new. An empty field removes its member.
export function bind(members, config, base) {
  const before = members.map(({ path, kind }) => base ? kinds[kind].show(config, [...base, ...path]) : '');
  return {
    fields: members.map((one, i) => fieldOf(one, `m${i}`, base ? before[i] : one.preset ?? '')),
    edit(text, values, at = base) {
      members.forEach(({ label, path, kind }, i) => {
        const value = (values[`m${i}`] ?? '').trim();
        if (value === before[i].trim()) return;
        const whole = [...at, ...path];
        text = value ? set(text, whole, kinds[kind].write(value, label)) : drop(text, whole, at.length);
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
  const all = { spellcheck: 'false', autocapitalize: 'none', ...kinds[kind].control, ...props, name };
  if (options) all.options = options.flat().includes(value) ? options : [...options, value];
  const node = field(label, { ...all, tag: options ? 'select' : all.tag, value: kind === 'flag' ? 'true' : value });
  if (kind === 'flag') controlOf(node).checked = value === 'true';
  node.append(more ?? '');
  return node;
}

// toggleLine adds a line to a text area, or removes it.
export function toggleLine(area, line) {
  const present = lines(area.value);
  const others = present.filter((one) => one !== line);
  area.value = (others.length < present.length ? others : [...others, line]).join('\n');
}

// rowButton returns a button that says for a screen reader to what it belongs.
export function rowButton(verb, what, action, props) {
  return button([verb, el('span', { class: 'visually-hidden' }, ` ${what}`)], action, props);
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
    messages(), content.flat(3));
}

// list returns a table whose last column has buttons, or a sentence if it has no rows yet.
export function list(title, heads, numeric, rows, sentence) {
  return rows.length ? table(title, [...heads, 'Change'], rows, { numeric, hideCaption: true })
    : el('p', { class: 'faint' }, sentence);
}

// facts returns a list of names and values.
export function facts(...pairs) {
  return el('dl', {}, pairs.flatMap(([name, value]) => [el('dt', {}, name), el('dd', {}, value)]));
}

// amount returns a number of the text with separators, or as it is if it is written in an unusual way.
export const amount = (text) => /^\d{1,15}$/.test(text) ? number(Number(text)) : text;

// labelOf returns the name of a member as a label.
export const labelOf = (name) => name[0].toUpperCase() + name.slice(1).replaceAll('_', ' ');
