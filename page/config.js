// Shows a tenant's config: forms for what is changed most, the text as JSON, and its history.
//
// The text is the only state. What the forms of forms.js need of it is the object editor:
//   text(), saved()   return the present text, which need not be JSON, and the one that was loaded or saved last
//   change(text)      replaces it. Valid JSON is laid out anew; white space alone is no change
//   save(near)        saves it at once, as Save does, and returns whether that succeeded. Results and errors are shown
//                     near the node, by default below Save; a conflict always there
// showForms(container, editor) fills container. It is called again after each load and shortly after an edit by hand,
// even of a text that is not JSON then; not after change, whose caller knows what has changed.

import * as api from './api.js';
import { compact, layOut, placeOf, readConfig, tagOf } from './configs.js';
import { button, controlOf, el, field, messages, showError, showStatus } from './dom.js';
import { difference } from './diff.js';
import { showForms } from './forms.js';
import { History } from './history.js';
import { parse } from './json.js';

const pause = 300; // milliseconds without typing, after which the forms follow the text
const staleness = 500; // milliseconds between looks at a change that another process of tollgate may not know of yet

// showConfig shows the view, or a way to try that again.
export async function showConfig(content, { signal, keepUnsaved }) {
  const open = async () => {
    const present = await readConfig(signal);
    const editor = new Editor(content, signal);
    keepUnsaved(() => editor.isUnsaved());
    editor.load(present);
  };
  try {
    await open();
  } catch (error) {
    content.append(button('Try again', open));
    throw error;
  }
}

class Editor {
  #base = { etag: '', text: '' }; // what the text was made from
  #turn = Promise.resolve(); // ends when no save runs
  #timer = 0;

  constructor(content, signal) {
    this.signal = signal;
    const text = field('Config', { tag: 'textarea', class: 'code', spellcheck: 'false', autocapitalize: 'off' });
    this.area = controlOf(text);
    this.area.addEventListener('input', () => this.#edited());
    signal.addEventListener('abort', () => clearTimeout(this.#timer));
    this.history = new History(this);
    this.mark = el('span', { class: 'faint', hidden: true }, 'Not saved yet');
    this.bar = el('div', { class: 'actions' }, button('Save', () => this.save(), { class: 'primary' }),
      this.history.button, this.mark);
    this.conflict = el('section', { hidden: true });
    this.forms = el('div');
    content.replaceChildren(el('div', { class: 'sticky' }, this.bar, messages()), this.conflict, this.history.panel,
      this.forms, el('section', {}, text));
  }

  text() { return this.area.value; }

  saved() { return this.#base.text; }

  etag() { return this.#base.etag; }

  isUnsaved() { return this.text() !== this.saved(); }

  // change replaces only what differs, so that the text area stays where it is scrolled to.
  change(changed) {
    const old = this.text();
    const now = layOut(changed);
    const most = Math.min(old.length, now.length);
    let start = 0;
    while (start < most && old[start] === now[start]) start++;
    let end = 0;
    while (end < most - start && old.at(-1 - end) === now.at(-1 - end)) end++;
    this.area.setRangeText(now.slice(start, now.length - end), start, old.length - end, 'preserve');
    this.#showMark();
  }

  // load replaces the text by what the server has.
  load(present) {
    this.#base = present;
    this.#endConflict();
    this.change(present.text);
    this.#showForms();
    if (present.error) showError(this.bar, present.error);
  }

  #edited() {
    this.#showMark();
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#showForms(), pause);
  }

  #showMark() { this.mark.hidden = !this.isUnsaved(); }

  #showForms() {
    clearTimeout(this.#timer);
    showForms(this.forms, this);
  }

  save(near = this.bar) { return this.#replace(near, () => this.#base.etag); }

  // #replace puts the text in the place of the config with an ETag; '' stands for one that cannot be read. It waits for
  // one before, with which it would be in conflict.
  #replace(near, etag) {
    this.#turn = this.#turn.then(() => this.#put(near, etag()));
    return this.#turn;
  }

  async #put(near, etag) {
    const text = this.text();
    try {
      parse(text); // also because a text that closes the object around it could go on
      if (!etag) {
        const present = await readConfig(this.signal);
        if (present.etag) return this.#beginConflict(present);
      }
      const body = `{"config":${compact(text)}}`;
      const answer = await api.request('PUT', api.path`/admin/config`, { body, headers: etag && { 'If-Match': etag } });
      this.#saved(near, { etag: tagOf(answer), text }, answer.body.warnings);
      return true;
    } catch (error) {
      if (error.status === 412) return this.#findConflict(near, etag, error);
      this.#showError(near, error);
      return false;
    }
  }

  #showError(near, error) {
    // Nothing outside of a dialog can be selected.
    showError(near, error, near.closest('dialog') ? undefined : (sentence) => this.linked(sentence));
    if (error instanceof SyntaxError) this.#select(error.at, error.at);
  }

  #saved(near, present, warnings = []) {
    this.#base = present;
    this.#endConflict();
    this.#showMark();
    showStatus(near, 'Saved.', ...warnings.map((sentence) => this.linked(sentence)));
    this.history.refresh();
  }

  // linked returns a sentence whose path, if the text has it, is a button that selects its place.
  linked(sentence) {
    const place = placeOf(this.text(), sentence);
    if (!place) return sentence;
    const select = () => {
      const { start, end } = placeOf(this.text(), sentence) ?? { start: 0, end: 0 }; // it may have changed
      this.#select(start, end);
    };
    return el('span', {}, sentence.slice(0, place.pathStart),
      el('button', { type: 'button', class: 'link', on: { click: select } }, place.path),
      sentence.slice(place.pathStart + place.path.length));
  }

  #select(start, end) {
    const { area } = this;
    const line = area.value.slice(0, start).split('\n').length - 1;
    area.focus();
    area.setSelectionRange(start, end);
    area.scrollTop = line * area.scrollHeight / area.value.split('\n').length - area.clientHeight / 3;
  }

  // #findConflict reads what is there instead of the config with an ETag.
  async #findConflict(near, etag, refusal) {
    try {
      let present = await readConfig(this.signal);
      for (let tries = 0; tries < 2 && present.etag === etag; tries++) {
        await new Promise((resolve) => setTimeout(resolve, staleness));
        present = await readConfig(this.signal);
      }
      return this.#beginConflict(present, refusal, near);
    } catch (error) {
      this.#showError(near, error); // the next Save finds the conflict again
      return false;
    }
  }

  // #beginConflict lets the user choose. It returns whether that is needless: the response to a change may be lost.
  #beginConflict(present, refusal, near = this.bar) {
    if (present.etag && compact(present.text) === compact(this.text())) {
      this.#saved(near, { ...present, text: this.text() });
      return true;
    }
    const place = el('div');
    const compare = button('Compare', () => {
      place.replaceChildren(difference(present.text, layOut(this.text()), 'theirs', 'mine'));
    });
    this.conflict.replaceChildren(el('h2', {}, 'Conflict'), el('div', { role: 'alert' },
      el('p', {}, refusal?.message ?? 'Config has changed'),
      el('p', {}, 'Somebody else has saved the config since you loaded it. Your text is kept until you choose.'),
      present.error && el('p', {}, present.error.message + ': ' + present.error.errors[0]),
      refusal?.requestId && el('p', { class: 'id' }, 'Request ID: ', el('code', {}, refusal.requestId))),
    el('div', { class: 'row' },
      button('Overwrite with mine', () => this.#replace(this.bar, () => present.etag)),
      !present.error && button('Take theirs', () => this.#take(present)),
      !present.error && compare), place);
    this.conflict.hidden = false;
    (present.error ? this.conflict.querySelector('button') : compare).focus();
    return false;
  }

  #take(present) {
    this.load(present);
    this.area.focus();
    showStatus(this.bar, 'The text is the config as it is now.');
  }

  #endConflict() {
    const focused = this.conflict.contains(document.activeElement);
    this.conflict.hidden = true;
    this.conflict.replaceChildren();
    if (focused) this.area.focus();
  }
}
