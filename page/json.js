// Reads and changes JSON as text. JSON.parse would lose what numbers look like (12345678901234567890, 1.10, 1e3) and
// names that occur twice; here what is not changed stays as it was, but white space.

const space = /[\x20\t\n\r]*/y;
const string = /"[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*"/;
const number = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/;
const token = new RegExp(`[{}[\\],:]|${string.source}|${number.source}|true|false|null`, 'y');
const kinds = { '{': 'object', '[': 'array', '"': 'string', t: 'true', f: 'false', n: 'null' };
const maxDepth = 500;

// parse returns the tree of a JSON text. A node has its kind (one of kinds, or number), its place in the text (start,
// end), and for an object members ({ name, nameStart, nameEnd, node }, in order), for an array items. It throws a
// SyntaxError that says in which line and column the text is wrong; its at is that place.
export function parse(text) {
  let at = 0;
  const root = value(0);
  if (skip() < text.length) wrong(at);
  return root;

  function skip() {
    space.lastIndex = at;
    space.test(text);
    return at = space.lastIndex;
  }

  // take moves over the next token, which must begin with one of the characters.
  function take(firsts) {
    const start = token.lastIndex = skip();
    const found = token.exec(text)?.[0];
    if (!found || !firsts.includes(found[0])) wrong(start);
    at = token.lastIndex;
    return { found, start };
  }

  function value(depth) {
    const { found, start } = take('{["-0123456789tfn');
    if (depth > maxDepth) throw syntaxError(`More than ${maxDepth} levels deep`, start);
    const node = { kind: kinds[found[0]] ?? 'number', start };
    if (found === '{') node.members = list('}', () => member(depth));
    if (found === '[') node.items = list(']', () => value(depth + 1));
    node.end = at;
    return node;
  }

  function list(close, read) {
    const all = [];
    if (text[skip()] !== close) do all.push(read()); while (text[skip()] === ',' && ++at);
    take(close);
    return all;
  }

  function member(depth) {
    const { found, start } = take('"');
    const nameEnd = at;
    take(':');
    return { name: JSON.parse(found), nameStart: start, nameEnd, node: value(depth + 1) };
  }

  function wrong(place) {
    const lines = text.slice(0, place).split('\n');
    const what = place < text.length ? 'unexpected ' + text.slice(place, place + 12) : 'unexpected end';
    throw syntaxError(`Not valid JSON at line ${lines.length}, column ${lines.at(-1).length + 1}: ${what}`, place);
  }
}

// syntaxError returns an error of what the user entered, which therefore has a status for showError.
function syntaxError(sentence, at) { return Object.assign(new SyntaxError(sentence), { at, status: 0 }); }

// find returns the node at a path of names and indexes, or undefined. Of a name that occurs twice the last counts, as
// for the server.
export function find(node, names) {
  for (const name of names) {
    node = node?.members ? node.members.findLast((member) => member.name === name)?.node : node?.items?.[name];
  }
  return node;
}

// valueOf returns what a node of the text means to JavaScript; undefined for an absent node.
export const valueOf = (text, node) => node && JSON.parse(text.slice(node.start, node.end));

// names returns the names of an object's members, each once, in order.
export const names = (node) => [...new Set((node?.members ?? []).map((member) => member.name))];

// set returns the text with the value at the path of names replaced by a JSON text, or added, with the objects that are
// missing on the way. Nothing else changes.
export function set(text, path, json) {
  const root = parse(text);
  const old = find(root, path);
  if (old) return text.slice(0, old.start) + json + text.slice(old.end);
  const last = path.at(-1);
  const parent = find(root, path.slice(0, -1));
  if (!parent) return set(text, path.slice(0, -1), `{${JSON.stringify(last)}:${json}}`);
  if (parent.kind !== 'object') throw new TypeError(`${path.slice(0, -1).join('.')} is not an object`);
  const at = parent.members.at(-1)?.node.end ?? parent.start + 1;
  return text.slice(0, at) + (parent.members.length ? ',' : '') + JSON.stringify(last) + ':' + json + text.slice(at);
}

// remove returns the text without the members at the path of names.
export function remove(text, path) {
  const { members = [] } = find(parse(text), path.slice(0, -1)) ?? {};
  const i = members.findLastIndex((member) => member.name === path.at(-1));
  if (i < 0) return text;
  const start = i > 0 ? members[i - 1].node.end : members[i].nameStart;
  const end = i === 0 && members.length > 1 ? members[1].nameStart : members[i].node.end;
  return remove(text.slice(0, start) + text.slice(end), path);
}

// format returns the text with each member and item on a line of its own.
export function format(text) {
  const lines = [];
  write(parse(text), '', '');
  return lines.join('\n');

  function write(node, before, indent) {
    const children = node.members ?? node.items;
    if (!children?.length) {
      lines.push(before + (children ? text[node.start] + text[node.end - 1] : text.slice(node.start, node.end)));
      return;
    }
    lines.push(before + text[node.start]);
    children.forEach((child, i) => {
      const name = child.node ? text.slice(child.nameStart, child.nameEnd) + ': ' : '';
      write(child.node ?? child, indent + '  ' + name, indent + '  ');
      if (i < children.length - 1) lines.push(lines.pop() + ',');
    });
    lines.push(indent + text[node.end - 1]);
  }
}
