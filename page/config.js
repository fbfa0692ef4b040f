// Shows a tenant's config: forms, the text as JSON, which is the only state, and its history. showForms is called after
// each load and edit by hand, but not after editor.change, whose caller knows what has changed.

import * as api from './api.js';
import { compact, layOut, placeOf, readConfig, tagOf } from './configs.js';
import { button, controlOf, el, field, messages, showError, showStatus } from './dom.js';
import { difference } from './diff.js';
import { showForms } from './forms.js';
import { History } from './history.js';
import { parse } from './json.js';

const pause = 300; // milliseconds without typing, after which the forms follow the text

// showConfig shows the view, or a way to try that again.
export async function showConfig(content, context) {
  const open = async () => new Editor(content, context, await readConfig(context.signal));
  try {
    await open();
  } catch (error) {
    content.append(button('Try again', open));
    throw error;
  }
}

class Editor {
  #base; // what the text was made from: { etag, text }

  constructor(content, { signal, keepUnsaved }, present) {
    this.signal = signal;
    keepUnsaved(() => this.isUnsaved());
    const text = field('Config', { tag: 'textarea', class: 'code', spellcheck: 'false' });
    this.area = controlOf(text);
    let timer;
    this.area.addEventListener('input', () => {
      this.#showMark();
      clearTimeout(timer);
      timer = setTimeout(() => showForms(this.forms, this), pause);
    });
    this.history = new History(this);
    this.mark = el('span', { class: 'faint' }, 'Not saved yet');
    this.bar = el('div', { class: 'actions' }, button('Save', () => this.save(), { class: 'primary' }),
      this.history.button, this.mark);
    this.conflict = el('section');
    this.forms = el('div');
    content.replaceChildren(el('div', { class: 'sticky' }, this.bar, messages()), this.conflict, this.history.panel,
      this.forms, el('section', {}, text));
    this.load(present);
  }

  text() { return this.area.value; }

  // saved returns the text that was loaded or saved last.
  saved() { return this.#base.text; }

  etag() { return this.#base.etag; }

  isUnsaved() { return this.text() !== this.saved(); }

  // change replaces the text, and lays out valid JSON anew.
  change(text) {
    this.area.value = layOut(text);
    this.#showMark();
  }

  #showMark() { this.mark.hidden = !this.isUnsaved(); }

  // load replaces the text by what the server has, and says how that came.
  load(present, ...sentences) {
    this.#setBase(present);
    this.change(present.text);
    showForms(this.forms, this);
    if (present.error) showError(this.bar, present.error);
    else if (sentences.length) this.#show(this.bar, sentences);
  }

  #setBase(present) {
    if (this.conflict.contains(document.activeElement)) this.area.focus();
    this.conflict.hidden = true;
    this.#base = present;
    this.#showMark();
  }

  // save returns whether it succeeded. It shows the result near a node, but a conflict always at the top.
  async save(near = this.bar) {
    try {
      parse(this.text()); // a text that closes the object around it could go on
      return await this.#send(near, this.text());
    } catch (error) {
      // What is behind a dialog cannot be selected.
      showError(near, error, near.closest('dialog') ? undefined : (sentence) => this.#link(sentence));
      if (error instanceof SyntaxError) this.#select({ start: error.at, end: error.at });
      return false;
    }
  }

  async #send(near, text) {
    const { etag } = this.#base;
    const done = (tag, warnings = []) => {
      this.#setBase({ etag: tag, text });
      this.#show(near, ['Saved.', ...warnings]);
      this.history.refresh();
      return true;
    };
    let refusal = { message: 'Config has changed' };
    if (etag || (await readConfig(this.signal)).error) {
      const options = { body: `{"config":${compact(text)}}`, headers: etag && { 'If-Match': etag } };
      try {
        const answer = await api.request('PUT', api.path`/admin/config`, options);
        return done(tagOf(answer), answer.body.warnings);
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
    if (compact(present.text) === compact(text)) return done(present.etag);
    this.#choose(present, refusal);
    return false;
  }

  // #choose lets the user choose between the text and another config that is there meanwhile.
  #choose(present, { message, requestId }) {
    const place = el('div');
    const compare = button('Compare', () => {
      place.replaceChildren(difference(present.text, layOut(this.text()), '− theirs, + mine'));
    });
    const overwrite = () => {
      this.#base.etag = present.etag;
      return this.save();
    };
    this.conflict.replaceChildren(
      el('div', { role: 'alert' }, el('p', {}, message),
        el('p', {}, 'Somebody else has saved another config since you loaded it. Yours is kept until you choose.'),
        requestId && el('p', { class: 'id' }, 'Request ID: ', el('code', {}, requestId))),
      el('div', { class: 'actions' }, button('Overwrite with mine', overwrite, { class: 'danger' }),
        button('Take theirs', () => this.load(present, 'The text is theirs now.')), compare), place);
    this.conflict.hidden = false;
    this.conflict.scrollIntoView({ block: 'center' });
    compare.focus();
  }

  #show(near, sentences) { showStatus(near, ...sentences.map((sentence) => this.#link(sentence))); }

  // #link returns a sentence whose path, if the text has it, is a button that selects its place.
  #link(sentence) {
    const place = placeOf(this.text(), sentence);
    if (!place) return sentence;
    const link = el('button', { type: 'button', class: 'link' }, place.path);
    link.addEventListener('click', () => { // the text may have changed
      this.#select(placeOf(this.text(), sentence) ?? { start: 0, end: 0 });
    });
    return el('span', {}, place.before, link, place.after);
  }

  #select({ start, end }) {
    const { area } = this;
    const lines = (text) => text.split('\n').length;
    area.focus();
    area.setSelectionRange(start, end);
    area.scrollTop = lines(area.value.slice(0, start)) * area.scrollHeight / lines(area.value) - area.clientHeight / 3;
  }
}
