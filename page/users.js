// The view Users: finds users and their API keys.

import { currentTenant, path, query, request } from './api.js';
import { button, clearMessages, controlOf, copyButton, el, field, messages, once, showError, showStatus }
  from './dom.js';
import { KeyCard, newKey } from './key.js';

const wholeKey = /^(?:user|temp)_[0-9a-f-]{36}$/i;

// showUsers lists the users from the start, or shows the one that the address says.
export const showUsers = (content, { signal, user }) => new Users(content, signal, user).search();

class Users {
  #choice = new AbortController(); // ends what was chosen before

  constructor(content, signal, user) {
    Object.assign(this, { content, signal });
    this.form = el('form', { role: 'search', class: 'find' },
      field('User or key', { type: 'search', autocapitalize: 'none', spellcheck: 'false', value: user,
        placeholder: 'Beginning of a user ID, or an API key' }),
      el('button', { type: 'submit', class: 'primary' }, 'Search'),
      button('New key', () => newKey(this)));
    this.form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.search();
    });
    [this.fresh, this.keys, this.list] = [el('div'), el('div'), el('div')];
    content.append(this.form, messages(), this.fresh, this.keys, this.list);
  }

  search() {
    return this.choose(() => this.find(controlOf(this.form).value.trim()));
  }

  // choose shows what look shows, instead of what is still on its way.
  async choose(look) {
    this.#choice.abort();
    const { signal } = this.#choice = new AbortController();
    this.content.setAttribute('aria-busy', 'true');
    clearMessages(this.form);
    this.fresh.replaceChildren();
    try {
      await look();
    } catch (error) {
      if (signal.aborted) return;
      this.keys.replaceChildren();
      showError(this.form, error);
    }
    if (!signal.aborted) this.content.removeAttribute('aria-busy');
  }

  // read returns the body of a response for what is chosen now.
  async read(url) {
    return (await request('GET', url, { signal: AbortSignal.any([this.signal, this.#choice.signal]) })).body;
  }

  // readGroups returns the groups of the present config as a Map, null if that is broken.
  async readGroups() {
    try {
      return new Map(Object.entries((await this.read(path`/admin/config`)).config.user_groups ?? {}));
    } catch (error) {
      if (error.status === 500) return null;
      throw error;
    }
  }

  // fill appends to a list what make makes of the entries of a route. It returns those of the first page, at least two
  // if they exist, and a button for more.
  async fill(list, name, members, make) {
    let after;
    const read = async () => {
      const entries = [];
      do { // pages may be empty
        const body = await this.read(path`/admin/${name}` + query({ ...members, after }));
        entries.push(...body[name]);
        after = body.next;
      } while (after && entries.length < 2);
      const nodes = entries.map(make);
      list.append(...nodes);
      more.hidden = !after;
      nodes[0]?.querySelector('button').focus(); // not of the first page, which is not on display yet
      return entries;
    };
    const more = button('More', read);
    return [await read(), more];
  }

  async find(text) {
    if (wholeKey.test(text)) return this.findKey(text);
    const names = el('ul', { class: 'users' });
    const [users, more] = await this.fill(names, 'users', { prefix: text, limit: 50 }, ({ userId }) =>
      el('li', {}, button(userId, () => this.open(userId), { class: 'link' })));
    const only = users.length === 1;
    this.keys.replaceChildren();
    this.list.replaceChildren(only ? '' : el('section', {},
      el('h2', {}, text ? `Users that begin with “${text}”` : 'All users'),
      users.length > 0 ? names : el('p', {}, 'No user has a key.'), more));
    const one = only ? users[0] : users.find(({ userId }) => userId === text);
    if (one) await this.showUser(one.userId);
  }

  open(userId) {
    return this.choose(async () => {
      await this.showUser(userId);
      this.keys.firstChild.focus();
    });
  }

  async showUser(userId) {
    const make = await this.startCards();
    const list = el('div');
    const [, more] = await this.fill(list, 'keys', { userId, limit: 20 }, make);
    return this.showKeys(`Keys of ${userId}`, list, more);
  }

  // findKey shows one key. Only the list of its user's keys says with which one it shares its balance.
  async findKey(key) {
    this.list.replaceChildren();
    const make = await this.startCards();
    const found = await this.read(path`/admin/keys/${key}`);
    const { userId } = found;
    const { keys } = userId ? await this.read(path`/admin/keys` + query({ userId })) : { keys: [] };
    const card = make(keys.find(({ apiKey }) => apiKey === key) ?? { ...found, apiKey: key });
    return this.showKeys(userId ? `Key of ${userId}` : 'Key of a visitor', card,
      userId ? button('All keys of this user', () => this.open(userId)) : '');
  }

  // startCards returns what makes the cards that are shown next.
  async startCards() {
    this.groups = await this.readGroups();
    this.cards = [];
    return (entry) => {
      this.cards.push(new KeyCard(entry, this));
      return this.cards.at(-1).node;
    };
  }

  async showKeys(title, ...nodes) {
    this.keys.replaceChildren(el('h2', { tabindex: '-1' }, title), messages(), ...nodes);
    const [card] = this.cards;
    if (this.cards.length === 1 && !card.entry.error) await once(card.node, () => card.showUsage());
  }

  // made shows a whole key until something else is looked for, and below it the user's keys.
  made(title, key, sentence, userId) {
    this.list.replaceChildren();
    this.choose(() => userId ? this.showUser(userId) : this.findKey(key));
    const heading = el('h2', { tabindex: '-1' }, title);
    this.fresh.replaceChildren(el('section', { class: 'once' }, heading, el('p', { role: 'status' }, sentence),
      el('div', { class: 'row' }, el('code', {}, key), copyButton(() => key)),
      el('p', { class: 'hint' }, 'Copy it now. The base URL for SDKs is ' +
        `${location.origin}/${currentTenant()}/v1 (Anthropic’s: without /v1).`)));
    heading.focus();
  }

  // say says what has become of a key that is not shown any more.
  say(sentence) {
    showStatus(this.keys, sentence);
    this.keys.firstChild.focus();
  }
}
