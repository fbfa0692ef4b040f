// Shows a tenant's config: forms for what is changed most, the text as JSON, and its history.
//
// The text is the only state. What the forms of forms.js need of it is the object editor:
//   text()            returns the present text, which need not be JSON
//   change(text)      replaces it. Valid JSON is laid out anew; white space alone is no change
//   save(near)        saves it at once, as Save does, and returns whether that succeeded. Results and errors are shown
//                     near the node, by default below Save; a conflict always there
// showForms(container, editor) fills container. It is called again after each load and shortly after an edit by hand,
// even of a text that is not JSON then; not after change, whose caller knows what has changed.

import * as api from './api.js';
import { button, controlOf, el, field, messages, showStatus } from './dom.js';
import { showForms } from './forms.js';
import { find, format, parse } from './json.js';

// layOut returns the text with each member on a line of its own, or as it is if it is no JSON.
function layOut(text) {
  try {
    return format(text);
  } catch {
    return text;
  }
}

export async function showConfig(content, { signal, keepUnsaved }) {
  const present = await api.request('GET', api.path`/admin/config`, { signal });
  const { start, end } = find(parse(present.text), ['config']);
  const loaded = layOut(present.text.slice(start, end));
  const text = field('Config', { tag: 'textarea', class: 'code', spellcheck: 'false', value: loaded });
  const area = controlOf(text);
  const editor = {
    text: () => area.value,
    change: (changed) => { area.value = layOut(changed); },
    save: async (near = save) => {
      parse(area.value);
      await api.request('PUT', api.path`/admin/config`, { body: `{"config":${area.value}}` });
      showStatus(near, 'Saved.');
      return true;
    },
  };
  const save = button('Save', () => editor.save(), { class: 'primary' });
  const forms = el('div');
  content.append(el('div', { class: 'actions' }, save), messages(), forms, el('section', {}, text));
  keepUnsaved(() => area.value !== loaded);
  area.addEventListener('change', () => showForms(forms, editor));
  showForms(forms, editor);
}
