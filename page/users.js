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
      this.showOnce(`New key of ${user}`, key, sentence);
      this.list.replaceChildren();
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
      if (mine === this.#chosen) {
        this.keys.replaceChildren();
        showError(this.form, error);
      }
    }
    if (mine !== this.#chosen) return;
    this.content.removeAttribute('aria-busy');
    const found = (selector, thing) => count(this.content.querySelectorAll(selector).length, thing);
    this.news.textContent = `${found('.users li', 'user')}, ${found('.key', 'key')}`;
  }

  async find(text) {
    if (wholeKey.test(text)) return this.findKey(text);
    const signal = AbortSignal.any([this.signal, this.#found.signal]);
    const read = pages(path`/admin/users`, 'users', { prefix: text, limit: 50 }, signal);
    const users = await read(2);
    this.keys.replaceChildren();
    this.list.replaceChildren();
    const only = users.length === 1 && !read.next;
    if (!only) this.showUsers(text, users, read);
    const one = only ? users[0] : users.find(({ userId }) => userId === text);
    if (one) await this.showUser(one.userId);
  }

  showUsers(text, users, read) {
    const names = el('ul', { class: 'users' });
    const title = text ? `Users that begin with “${text}”` : 'All users';
    this.list.append(el('section', {}, el('h2', {}, title), names,
      users.length === 0 && el('p', {}, 'None with a key.'),
      addTo(names, users, read, ({ userId }) => el('li', {}, button(userId, () => this.choose(async () => {
        this.once.replaceChildren();
        await this.showUser(userId);
        this.keys.firstChild.focus();
      }), { class: 'link' })))));
  }

  async showUser(userId) {
    const signal = this.own();
    const read = pages(path`/admin/keys`, 'keys', { userId, limit: 20 }, signal);
    const [keys, groups] = await Promise.all([read(1), readGroups(signal)]);
    return this.showKeys(`Keys of ${userId}`, keys, groups, signal, read);
  }

  // findKey shows one key. Only the list of its user's keys says with which one it shares its balance.
  async findKey(key) {
    const signal = this.own();
    this.list.replaceChildren();
    const [found, groups] = await Promise.all([
      request('GET', path`/admin/keys/${key}`, { signal }).catch(explain), readGroups(signal)]);
    const { userId } = found.body;
    const listed = userId && await request('GET', path`/admin/keys` + query({ userId }), { signal });
    const entry = listed && listed.body.keys.find(({ apiKey }) => apiKey === key);
    if (userId) this.list.append(button('All keys of this user', () => this.choose(async () => {
      await this.showUser(userId);
      this.list.replaceChildren();
      this.keys.firstChild.focus();
    })));
    return this.showKeys(userId ? `Key of ${userId}` : 'Key of a visitor', [entry ?? { ...found.body, apiKey: key }],
      groups, signal);
  }

  own() { return AbortSignal.any([this.signal, this.#found.signal, this.#chosen.signal]); }

  async showKeys(title, keys, groups, signal, read = {}) {
    const cards = [];
    const list = el('div');
    const view = { groups, signal, cards,
      async readGroups() { return view.groups = await readGroups(signal); },
      rotated: (entry, key, sentence) => {
        this.showOnce('New key', key, sentence);
        this.choose(() => entry.userId ? this.showUser(entry.userId) : this.findKey(key));
      },
      revoked: async ({ userId }, sentence) => {
        list.remove();
        if (userId) await this.choose(() => this.showUser(userId));
        showStatus(this.keys, sentence);
        this.keys.firstChild.focus();
      } };
    this.keys.replaceChildren(el('h2', { tabindex: '-1' }, title), messages(), list,
      addTo(list, keys, read, (entry) => {
        cards.push(new KeyCard(entry, view));
        return cards.at(-1).node;
      }) || '', keys.length === 0 ? el('p', {}, 'None.') : '');
    if (cards.length === 1 && !cards[0].entry.error) await cards[0].showUsage();
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

// addTo appends to a list what make makes of entries, and returns a button that does so with those of further pages.
function addTo(list, entries, read, make) {
  list.append(...entries.map(make));
  if (!read.next) return false;
  const more = button('More', async () => {
    const nodes = (await read(1)).map(make);
    list.append(...nodes);
    nodes[0]?.querySelector('button').focus();
    if (!read.next) more.remove();
  });
  return more;
}

// pages returns a function that reads further pages of a list, until they have at least so and so many entries. Its
// next tells whether more may come. Pages may be empty.
function pages(url, name, members, signal) {
  return async function read(least) {
    const entries = [];
    do {
      const { body } = await request('GET', url + query({ ...members, after: read.next }), { signal });
      entries.push(...body[name]);
      read.next = body.next;
    } while (read.next && entries.length < least);
    return entries;
  };
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
