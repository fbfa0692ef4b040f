// Shows the versions of a config: what each has changed, and a way back to it.

import * as api from './api.js';
import { configIn, readConfig, tagOf } from './configs.js';
import { difference } from './diff.js';
import { button, dialog, el, messages, time } from './dom.js';

export class History {
  #versions = [];

  constructor(editor) {
    this.editor = editor;
    this.heading = el('h2', { tabindex: '-1' }, 'History');
    this.list = el('ol', { class: 'versions' });
    this.panel = el('section', { hidden: true }, this.heading, messages(), this.list);
    this.button = button('History', () => this.#toggle(), { 'aria-expanded': 'false' });
  }

  async #toggle() {
    const opens = this.panel.hidden;
    if (opens) await this.#load();
    this.panel.hidden = !opens;
    this.button.setAttribute('aria-expanded', opens);
    if (opens) this.heading.focus();
  }

  // refresh loads the list again if it is shown, if it can: what led here has succeeded.
  async refresh() {
    if (!this.panel.hidden) await this.#load().catch(() => {});
  }

  async #load() {
    const { signal } = this.editor;
    this.#versions = (await api.request('GET', api.path`/admin/config/history`, { signal })).body.versions;
    this.list.replaceChildren(...this.#versions.map((version, i) => this.#item(version, this.#versions[i + 1])));
    if (!this.#versions.length) this.list.append('None yet: the config was written straight to Redis.');
  }

  #item(version, earlier) {
    const name = version.etag.slice(0, 8); // several versions may be of the same minute
    const more = (text) => el('span', { class: 'visually-hidden' }, ` ${text} ${name}`);
    const at = time(version.savedAt);
    const by = /^[0-9a-f]{8}$/.test(version.savedBy) ? 'admin token ' : '';
    const place = el('div');
    const compare = button('Difference', async () => {
      const opens = !place.firstElementChild;
      place.replaceChildren(opens ? await this.#difference(version, earlier) : '');
      compare.setAttribute('aria-expanded', opens);
    }, { 'aria-expanded': 'false' });
    compare.append(more('of version'));
    const restore = button('Restore', () => this.#ask(version, `version ${name} of ${at.textContent}`));
    restore.append(more('version'));
    return el('li', {}, el('div', { class: 'row' }, el('div', { class: 'wide' }, at, el('span', { class: 'faint' },
      ` by ${by}${version.savedBy}, version `, el('code', {}, name))), compare, restore), place);
  }

  async #difference(version, earlier) {
    const text = await this.#textOf(version);
    return earlier ? difference(await this.#textOf(earlier), text, '− the version before, + this version')
      : difference('', text, 'The oldest version that is kept.');
  }

  async #textOf({ etag }) {
    const { signal } = this.editor;
    return configIn((await api.request('GET', api.path`/admin/config/history/${etag}`, { signal })).text);
  }

  async #ask(version, name) {
    const danger = this.editor.isUnsaved();
    const text = danger ? 'What you have changed and not saved is lost.' : 'The present config stays in the history.';
    const action = () => this.#restore(version, name);
    if (!await dialog({ title: `Restore ${name}?`, text, verb: 'Restore', danger, action })) return;
    await this.refresh();
    this.heading.focus();
  }

  // #restore replaces the config that the list or the text area shows, but no other that came later.
  async #restore(version, name) {
    const { editor } = this;
    const text = await this.#textOf(version);
    try {
      // A config that is broken in Redis has no ETag here. Elsewhere an empty element does not count.
      const isBroken = !editor.etag() && (await readConfig(editor.signal)).error;
      const headers = isBroken ? {} : { 'If-Match': `${editor.etag()},"${this.#versions[0].etag}"` };
      const answer = await api.request('POST', api.path`/admin/config/history/${version.etag}/restore`, { headers });
      editor.load({ etag: tagOf(answer), text }, `Restored ${name}.`, ...answer.body.warnings ?? []);
    } catch (error) {
      if (error.status === 412) {
        await this.refresh();
        error.errors = ['The history shows it now. Restore again to replace that.'];
      }
      throw error;
    }
  }
}
