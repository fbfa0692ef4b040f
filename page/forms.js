// The forms of the view Config for what is changed most. Each changes the text of the editor, and saves it.

import { button, dialog, el } from './dom.js';
import { endpointsSection } from './endpoints.js';
import { groupsSection } from './groups.js';
import { remove } from './json.js';
import { bind, Config, create, fieldOf, member, section } from './members.js';
import { paymentsSection } from './prices.js';

const shown = new WeakMap(); // the Forms of a container

// showForms fills a container with forms for the text of the editor, which config.js describes. Called again, it brings
// them in line with the text.
export function showForms(container, editor) {
  if (!shown.has(container)) shown.set(container, new Forms(container, editor));
  shown.get(container).render();
}

class Forms {
  #container;
  #rendered;
  #opener; // the button that was clicked last

  constructor(container, editor) {
    this.#container = container;
    this.editor = editor;
    this.open = new Map(); // whether details are open, by what they are of
    const note = (event) => { this.#opener = event.target.closest('button') ?? this.#opener; };
    container.addEventListener('click', note, { capture: true });
  }

  render() {
    const text = this.editor.text();
    if (text === this.#rendered) return;
    this.#rendered = text;
    this.#container.replaceChildren(...this.#sections(text));
  }

  #sections(text) {
    let config;
    try {
      config = new Config(text);
    } catch {
      return [section('Forms', [], el('p', { class: 'faint' }, 'They are back as soon as the text is valid JSON.'))];
    }
    return [groupsSection, endpointsSection, originsSection, paymentsSection].map((one) => one(this, config));
  }

  isUnsaved() { return this.editor.text() !== this.editor.saved(); }

  // ask shows a dialog whose button changes the text, by change(text, values), and saves it.
  async ask({ text = [], change, ...options }) {
    const note = this.isUnsaved() ? ['The text has other changes that are not saved yet. They are saved, too.'] : [];
    const back = this.#comeBack();
    let result;
    await dialog({ ...options, text: [text, note].flat(), action: async (values, form) => {
      result = await this.#save(change(this.editor.text(), values), form.querySelector('.messages'));
    } });
    back(result);
  }

  // apply changes the text and saves it, at once unless something else would be saved along.
  async apply(verb, change) {
    if (this.isUnsaved()) return this.ask({ title: `${verb}?`, verb, change });
    const back = this.#comeBack();
    back(await this.#save(change(this.editor.text()), this.#opener.closest('section').querySelector('.messages')));
  }

  // save saves a text, and returns what the editor says about it in messages. If the text is refused, which they say, it
  // is again what it was. After a conflict it stays: the editor asks whose text counts.
  async #save(text, messages) {
    const { editor } = this;
    const before = editor.text();
    editor.change(text);
    const isSaved = await editor.save(messages);
    if (!isSaved && messages.querySelector('[role=alert]')) {
      editor.change(before);
      throw new DOMException('It is shown.', 'AbortError'); // keeps a dialog open
    }
    const result = [...messages.childNodes];
    this.render();
    return result;
  }

  // comeBack returns a function that shows a result in the section of the button that was clicked, and gives that
  // button's successor the focus if the section was drawn anew.
  #comeBack() {
    const opener = this.#opener;
    const index = [...this.#container.children].indexOf(opener.closest('section'));
    return (result = []) => {
      const place = this.#container.children[index];
      if (!place) return;
      if (result.length) place.querySelector('.messages').replaceChildren(...result);
      if (opener.isConnected) return;
      const buttons = [...place.querySelectorAll('button')];
      (buttons.find((one) => one.textContent === opener.textContent) ?? buttons[0]).focus();
    };
  }

  // edit asks for members of the object at base.
  edit({ base, members, change = (text) => text, ...options }) {
    const bound = bind(new Config(this.editor.text()), base, members);
    return this.ask({ ...options, fields: bound.fields, change: (text, values) => change(bound.edit(text, values)) });
  }

  // add asks for the name of a new object in the one at path, and for its members.
  add({ path, name, members, ...options }) {
    const bound = bind(undefined, undefined, members);
    return this.ask({ ...options, fields: [fieldOf({ ...name, required: true }, 'name', ''), ...bound.fields],
      change: (text, values) => {
        const at = [...path, values.name.trim()];
        return bound.edit(create(text, at), values, at);
      } });
  }

  // remove asks before it removes what is at a path.
  remove(what, path, text, change = (now) => now) {
    return this.ask({ title: `Remove ${what}?`, text, verb: 'Remove', danger: true,
      change: (now) => change(remove(now, path)) });
  }
}

function originsSection(forms, config) {
  const base = ['cors'];
  const origins = config.list([...base, 'allowed_origins']);
  const edit = () => forms.edit({ title: 'Origins', base, verb: 'Save origins', members: [
    member('Allowed origins', 'allowed_origins', 'lines', { hint: 'One a line, with its scheme and without a path. ' +
      'A line with * alone allows all.' })] });
  return section('Origins', button('Edit origins', edit), origins.length
    ? el('ul', {}, origins.map((origin) => el('li', {}, el('code', {}, origin))))
    : el('p', { class: 'faint' }, 'Pages of no other origin can call tollgate.'));
}
