// The view Users: finds users and their API keys.

import { path, query, request } from './api.js';
import { button, clearMessages, controlOf, copyButton, el, field, messages, showError, showStatus } from './dom.js';
import { KeyCard } from './key.js';
import { count } from './keytext.js';
import { newKeyForm } from './newkey.js';

const wholeKey = /^(?:user|temp)_[0-9a-f-]{36}$/i;

// showUsers lists the users from the start, or shows the one that the address says.
export function showUsers(content, { signal, user }) {
  const view = new Users(content, signal);
  controlOf(view.form).value = user;
  return view.search();
}

class Users {
  #found = new AbortController(); // ends with what a search has found
  #chosen = new AbortController(); // ends with the keys on display

  constructor(content, signal) {
    Object.assign(this, { content, signal });
    const form = newKeyForm(() => readGroups(signal), (user, key, sentence) => {
      this.list.replaceChildren();
      this.showOnce(`New key of ${user}`, key, sentence);
      this.choose(() => this.showUser(user));
    });
    this.form = el('form', { role: 'search', class: 'find' },
      field('User or key', { type: 'search', autocapitalize: 'none', spellcheck: 'false',
        placeholder: 'Beginning of a user ID, or an API key' }),
      el('button', { type: 'submit', class: 'primary' }, 'Search'), button('New key', form.open));
    this.form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.search();
    });
    [this.once, this.keys, this.list] = [el('div'), el('div'), el('div')];
    this.news = el('p', { class: 'visually-hidden', 'aria-live': 'polite' });
    content.append(this.form, messages(), this.news, form.place, this.once, this.keys, this.list);
  }

  search() {
    this.#found.abort();
    this.#found = new AbortController();
    this.once.replaceChildren();
    return this.choose(() => this.find(controlOf(this.form).value.trim()));
  }

  // choose shows what look shows, instead of what is still on its way.
  async choose(look) {
    this.#chosen.abort();
    const mine = this.#chosen = new AbortController();
    this.content.setAttribute('aria-busy', 'true');
    clearMessages(this.form);
    try {
      await look();
    } catch (error) {
      if (mine !== this.#chosen) return;
      this.keys.replaceChildren();
      showError(this.form, error);
    }
    if (mine !== this.#chosen) return;
    this.content.removeAttribute('aria-busy');
    this.news.textContent = count(this.content.querySelectorAll('.users li, .key').length, 'result');
  }

  async find(text) {
    if (wholeKey.test(text)) return this.findKey(text);
    const names = el('ul', { class: 'users' });
    const [users, more] = await fill(names, 'users', { prefix: text, limit: 50 }, 2,
      AbortSignal.any([this.signal, this.#found.signal]),
      ({ userId }) => el('li', {}, button(userId, () => this.open(userId), { class: 'link' })));
    const only = users.length === 1 && !more;
    this.keys.replaceChildren();
    this.list.replaceChildren(only ? '' : el('section', {},
      el('h2', {}, text ? `Users that begin with “${text}”` : 'All users'),
      users.length > 0 ? names : el('p', {}, 'None with a key.'), more));
    const one = only ? users[0] : users.find(({ userId }) => userId === text);
    if (one) await this.showUser(one.userId);
  }

  // open goes to the keys of a user.
  open(userId) {
    return this.choose(async () => {
      this.once.replaceChildren();
      await this.showUser(userId);
      this.keys.firstChild.focus();
    });
  }

  async showUser(userId) {
    const view = await this.newView(userId);
    const [, more] = await fill(view.list, 'keys', { userId, limit: 20 }, 1, view.signal, view.make);
    return this.showKeys(`Keys of ${userId}`, view, more);
  }

  // findKey shows one key. Only the list of its user's keys says with which one it shares its balance.
  async findKey(key) {
    const view = await this.newView();
    this.list.replaceChildren();
    const read = async (url) => (await request('GET', url, { signal: view.signal })).body;
    const found = await read(path`/admin/keys/${key}`).catch(explain);
    const { userId } = found;
    const { keys } = userId ? await read(path`/admin/keys` + query({ userId })) : { keys: [] };
    if (userId) this.list.append(button('All keys of this user', () => {
      this.list.replaceChildren();
      return this.open(userId);
    }));
    view.list.append(view.make(keys.find(({ apiKey }) => apiKey === key) ?? { ...found, apiKey: key }));
    return this.showKeys(userId ? `Key of ${userId}` : 'Key of a visitor', view);
  }

  // newView returns what the keys that are shown next share, as KeyCard says, and makes a card of an entry.
  async newView() {
    const signal = AbortSignal.any([this.signal, this.#found.signal, this.#chosen.signal]);
    const view = { signal, cards: [], groups: await readGroups(signal), list: el('div'),
      make: (entry) => {
        view.cards.push(new KeyCard(entry, view));
        return view.cards.at(-1).node;
      },
      rotated: (entry, key, sentence) => {
        this.showOnce('New key', key, sentence);
        this.choose(() => entry.userId ? this.showUser(entry.userId) : this.findKey(key));
      },
      say: (sentence) => {
        showStatus(view.list, sentence);
        this.keys.firstChild.focus();
      } };
    return view;
  }

  async showKeys(title, { list, cards: [only, another] }, more = '') {
    this.keys.replaceChildren(el('h2', { tabindex: '-1' }, title), messages(), list, more);
    if (!another && only && !only.entry.error) await only.showUsage().catch((error) => showError(only.node, error));
  }

  // showOnce shows a whole key until something else is looked for.
  showOnce(title, key, sentence) {
    const heading = el('h2', { tabindex: '-1' }, title);
    this.once.replaceChildren(el('section', { class: 'once' }, heading, el('p', { role: 'status' }, sentence),
      el('div', { class: 'row' }, el('code', {}, key), copyButton(() => key), button('Done', () => {
        this.once.replaceChildren();
        controlOf(this.form).focus();
      })), el('p', { class: 'hint' }, 'Copy it now: below it is masked.')));
    heading.focus();
  }
}

// fill appends to a list what make makes of the entries of a route: at least that many, if they exist, for pages may be
// empty. It returns them, and a button for the others or ''.
async function fill(list, name, members, least, signal, make) {
  const more = button('More', async () => {
    const [first] = await read(1);
    first?.querySelector('button').focus();
  });
  let after;
  const entries = [];
  async function read(least) {
    const nodes = [];
    do {
      const { body } = await request('GET', path`/admin/${name}` + query({ ...members, after }), { signal });
      entries.push(...body[name]);
      nodes.push(...body[name].map(make));
      after = body.next;
    } while (after && nodes.length < least);
    list.append(...nodes);
    if (!after) more.remove();
    return nodes;
  }
  await read(least);
  return [entries, after ? more : ''];
}

// explain throws the error of a key that was looked for, with what it may mean.
function explain(error) {
  if (error.status === 404) error.errors = ['The tenant does not have this key, or not any more.'];
  throw error;
}

// readGroups returns the groups of the present config as a Map, null if that is broken.
async function readGroups(signal) {
  try {
    const { body } = await request('GET', path`/admin/config`, { signal, parallel: true });
    return new Map(Object.entries(body.config.user_groups ?? {}));
  } catch (error) {
    if (error.status === 500) return null;
    throw error;
  }
}
