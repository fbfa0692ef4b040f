// Shows the versions of a config: what each has changed, and a way back to it.

import * as api from './api.js';
import { configIn, readConfig, tagOf } from './configs.js';
import { difference } from './diff.js';
import { button, dialog, el, messages, showStatus, time } from './dom.js';

const hidden = (text) => el('span', { class: 'visually-hidden' }, text);

// makers says who saved a version, of those that are not an admin token.
const makers = new Map([['operator', 'operator'], ['seed', 'seed, at the start of the server'],
  ['redis', 'redis: it was written straight there']]);

export class History {
  #texts = new Map(); // by ETag, of the versions that were read
  #versions = [];
  #seen = ''; // the ETag of the present config, if a restore has found it to be another than expected

  // editor is the Editor of config.js.
  constructor(editor) {
    this.editor = editor;
    this.button = button('History', () => this.#toggle(), { 'aria-expanded': 'false' });
    this.heading = el('h2', { tabindex: '-1' }, 'History');
    this.list = el('ol', { class: 'versions' });
    this.panel = el('section', { hidden: true }, this.heading, messages(), this.list);
  }

  async #toggle() {
    const opens = this.panel.hidden;
    if (opens) await this.#load();
    this.panel.hidden = !opens;
    this.button.setAttribute('aria-expanded', opens);
    if (opens) this.heading.focus();
  }

  // refresh loads the list again if it is shown. A failure leaves it as it is: what led here has succeeded.
  async refresh() {
    if (!this.panel.hidden) await this.#load().catch(() => {});
  }

  async #load() {
    const { signal } = this.editor;
    this.#versions = (await api.request('GET', api.path`/admin/config/history`, { signal })).body.versions;
    this.list.replaceChildren(...this.#versions.map((version, i) => this.#item(version, this.#versions[i + 1])));
    if (!this.#versions.length) {
      this.list.append(el('li', { class: 'faint' }, 'Nothing yet: the config was written straight to Redis. The next ' +
        'change keeps it here.'));
    }
  }

  #item(version, earlier) {
    const place = el('div');
    const name = version.etag.slice(0, 8); // several may be of the same minute
    const saved = time(version.savedAt);
    const show = button('Difference', async () => {
      const opens = !place.firstChild;
      place.replaceChildren(...opens ? [await this.#difference(version, earlier)] : []);
      show.setAttribute('aria-expanded', opens);
    }, { 'aria-expanded': 'false' });
    show.append(hidden(` of version ${name}`));
    const restore = button('Restore', () => this.#askToRestore(version, `${name} of ${saved.textContent}`));
    restore.append(hidden(` version ${name}`));
    const by = makers.get(version.savedBy) ?? `admin token ${version.savedBy}`;
    return el('li', {}, el('div', { class: 'row' }, el('div', { class: 'wide' }, saved,
      el('span', { class: 'faint' }, ` by ${by}, version `, el('code', {}, name))), show, restore), place);
  }

  async #difference(version, earlier) {
    const now = await this.#textOf(version);
    if (!earlier) return difference('', now, 'no version before this one is kept', 'this version');
    return difference(await this.#textOf(earlier), now, 'the version before', 'this version');
  }

  async #textOf({ etag }) {
    if (!this.#texts.has(etag)) {
      const { signal } = this.editor;
      const { text } = await api.request('GET', api.path`/admin/config/history/${etag}`, { signal });
      this.#texts.set(etag, configIn(text));
    }
    return this.#texts.get(etag);
  }

  async #askToRestore(version, name) {
    const text = ['The present config becomes a version in the history.'];
    if (this.editor.isUnsaved()) text.push('What you have changed and not saved is lost.');
    const restored = await dialog({ title: `Restore version ${name}?`, text, verb: 'Restore',
      danger: true, action: () => this.#restore(version, name) });
    if (!restored) return;
    await this.refresh();
    this.heading.focus();
  }

  // #restore replaces the config that the list or the text area shows, but no other that is new since.
  async #restore(version, name) {
    const { editor } = this;
    try {
      const text = await this.#textOf(version);
      const headers = await this.#precondition();
      const answer = await api.request('POST', api.path`/admin/config/history/${version.etag}/restore`, { headers });
      this.#seen = '';
      editor.load({ etag: tagOf(answer), text });
      showStatus(editor.bar, `Restored version ${name}.`,
        ...(answer.body.warnings ?? []).map((sentence) => editor.linked(sentence)));
    } catch (error) {
      if (error.status === 412) {
        this.#seen = (await readConfig(editor.signal)).etag;
        await this.refresh();
        error.errors = ['The history is up to date again. Restore replaces the config all the same.'];
      }
      throw error;
    }
  }

  async #precondition() {
    const { editor } = this;
    if (!editor.etag()) { // what is broken in Redis has no ETag here: it must still be so
      const present = await readConfig(editor.signal);
      if (!present.etag) return {};
    }
    const shown = this.#versions.slice(0, 1).map(({ etag }) => `"${etag}"`);
    return { 'If-Match': [...new Set([editor.etag(), this.#seen, ...shown])].filter(Boolean).join(', ') };
  }
}
