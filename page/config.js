// Shows a tenant's config: forms for what is changed most, the text as JSON, and its history.
//
// The text is the only state. The forms of forms.js have an Editor for it:
//   text(), saved()   return the present text, which need not be JSON, and the one that was loaded or saved last
//   change(text)      replaces it, and lays out valid JSON anew
//   save(near)        saves it and returns whether that succeeded. The result is shown near the node, by default below
//                     Save; a conflict always there
// showForms(container, editor) is called after each load and shortly after an edit by hand; not after change, whose
// caller knows what has changed.

import * as api from './api.js';
import { compact, layOut, placeOf, readConfig, tagOf } from './configs.js';
import { button, controlOf, el, field, messages, showError, showStatus } from './dom.js';
import { difference } from './diff.js';
import { showForms } from './forms.js';
import { History } from './history.js';
import { parse } from './json.js';

const pause = 300; // milliseconds without typing, after which the forms follow the text

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
    this.area.addEventListener('input', () => {
      this.#showMark();
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#showForms(), pause);
    });
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

  change(text) {
    const { scrollTop } = this.area;
    this.area.value = layOut(text);
    this.area.scrollTop = scrollTop;
    this.#showMark();
  }

  // load replaces the text by what the server has.
  load(present) {
    this.#setBase(present);
    this.change(present.text);
    this.#showForms();
    if (present.error) showError(this.bar, present.error);
  }

  #setBase(present) {
    const { conflict } = this;
    if (conflict.contains(document.activeElement)) this.area.focus();
    conflict.hidden = true;
    this.#base = present;
    this.#showMark();
  }

  #showMark() { this.mark.hidden = !this.isUnsaved(); }

  #showForms() {
    clearTimeout(this.#timer);
    showForms(this.forms, this);
  }

  // save waits for one before, with which it would be in conflict.
  save(near = this.bar) {
    this.#turn = this.#turn.then(() => this.#put(near));
    return this.#turn;
  }

  async #put(near) {
    const text = this.text();
    try {
      parse(text); // a text that closes the object around it could go on
      return await this.#send(near, text);
    } catch (error) {
      // What is behind a dialog cannot be selected.
      showError(near, error, near.closest('dialog') ? undefined : (sentence) => this.#linked(sentence));
      if (error instanceof SyntaxError) this.#select(error.at);
      return false;
    }
  }

  async #send(near, text) {
    const { etag } = this.#base;
    let refusal;
    if (etag || (await readConfig(this.signal)).error) {
      const options = { body: `{"config":${compact(text)}}`, headers: etag && { 'If-Match': etag } };
      try {
        const answer = await api.request('PUT', api.path`/admin/config`, options);
        return this.#done(near, { etag: tagOf(answer), text }, answer.body.warnings);
      } catch (error) {
        if (error.status !== 412) throw error;
        refusal = error;
      }
    }
    const present = await readConfig(this.signal);
    if (present.error) {
      this.#setBase(present);
      throw present.error;
    }
    // The response to an earlier save may have been lost.
    if (compact(present.text) === compact(text)) return this.#done(near, { ...present, text });
    this.#choose(present, refusal);
    return false;
  }

  #done(near, present, warnings) {
    this.#setBase(present);
    this.showResult(near, 'Saved.', warnings);
    this.history.refresh();
    return true;
  }

  // #choose lets the user choose between the text and another config that is there meanwhile.
  #choose(present, refusal = {}) {
    const place = el('div');
    const compare = button('Compare', () => {
      place.replaceChildren(difference(present.text, layOut(this.text()), '− theirs, + mine'));
    });
    this.conflict.replaceChildren(
      el('div', { role: 'alert' }, el('p', {}, refusal.message ?? 'Config has changed'),
        el('p', {}, 'Somebody else has saved another config since you loaded it. Yours is kept until you choose.'),
        refusal.requestId && el('p', { class: 'id' }, 'Request ID: ', el('code', {}, refusal.requestId))),
      el('div', { class: 'actions' },
        button('Overwrite with mine', () => {
          this.#base.etag = present.etag;
          return this.save();
        }, { class: 'danger' }),
        button('Take theirs', () => {
          this.load(present);
          this.showResult(this.bar, 'The text is theirs now.');
        }), compare), place);
    this.conflict.hidden = false;
    this.conflict.scrollIntoView({ block: 'center' });
    compare.focus();
  }

  // showResult shows sentences, with links to the places that they name.
  showResult(near, sentence, warnings = []) {
    showStatus(near, sentence, ...warnings.map((warning) => this.#linked(warning)));
  }

  // #linked returns a sentence whose path, if the text has it, is a button that selects its place.
  #linked(sentence) {
    const place = placeOf(this.text(), sentence);
    if (!place) return sentence;
    const select = () => {
      const now = placeOf(this.text(), sentence); // the text may have changed
      this.#select(now?.start, now?.end);
    };
    const link = el('button', { type: 'button', class: 'link' }, place.path);
    link.addEventListener('click', select); // a click clears no messages
    return el('span', {}, place.before, link, place.after);
  }

  #select(start = 0, end = start) {
    const { area } = this;
    const line = area.value.slice(0, start).split('\n').length - 1;
    area.focus();
    area.setSelectionRange(start, end);
    area.scrollTop = line * area.scrollHeight / area.value.split('\n').length - area.clientHeight / 3;
  }
}
