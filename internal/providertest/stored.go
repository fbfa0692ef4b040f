package providertest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
)

// mostStored is the number of responses that are kept. The oldest are forgotten.
const mostStored = 4096

// An item is an item of the input or the output of a response.
type item struct {
	id, json string
}

// A storedResponse is a response that can be retrieved and continued.
type storedResponse struct {
	id            string
	json          string
	input, output []item // the input begins with what the response continues, oldest first
	all, made     int64  // tokens of both, and of the output
}

// storedResponses are the responses of one account. The zero value has none.
type storedResponses struct {
	mu    sync.Mutex
	last  int // number of the newest ID
	byID  map[string]*storedResponse
	items map[string]*storedResponse // by the ID of an item of the input or output
	order []string
}

// newID returns an ID that no other response or item has.
func (s *storedResponses) newID(prefix string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	return fmt.Sprintf("%s_%048x", prefix, s.last)
}

// get returns the response with an ID, or nil.
func (s *storedResponses) get(id string) *storedResponse {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byID[id]
}

// find returns the item with an ID and the response that it is of, or nil.
func (s *storedResponses) find(id string) (item, *storedResponse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	owner := s.items[id]
	if owner == nil {
		return item{}, nil
	}
	all := slices.Concat(owner.output, owner.input)
	return all[slices.IndexFunc(all, func(i item) bool { return i.id == id })], owner
}

// put stores a response.
func (s *storedResponses) put(r *storedResponse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byID == nil {
		s.byID, s.items = make(map[string]*storedResponse), make(map[string]*storedResponse)
	}
	s.byID[r.id] = r
	for _, i := range slices.Concat(r.input, r.output) {
		if s.items[i.id] == nil {
			s.items[i.id] = r
		}
	}
	s.order = append(s.order, r.id)
	for len(s.order) > mostStored {
		s.remove(s.order[0])
	}
}

// delete removes the response with an ID and reports whether there was one.
func (s *storedResponses) delete(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, found := s.byID[id]
	if found {
		s.remove(id)
	}
	return found
}

func (s *storedResponses) remove(id string) {
	r := s.byID[id]
	for _, i := range slices.Concat(r.input, r.output) {
		if s.items[i.id] == r {
			delete(s.items, i.id)
		}
	}
	delete(s.byID, id)
	s.order = slices.DeleteFunc(s.order, func(other string) bool { return other == id })
}

// isStored reports whether a request asks for a stored response.
func isStored(r *http.Request) bool {
	isMethod := r.Method == http.MethodGet || r.Method == http.MethodDelete
	return isMethod && strings.HasPrefix(path.Clean(r.URL.Path), "/v1/responses/")
}

// respondStored retrieves, lists the input of, or deletes a stored response. The path is read as a careless provider
// does: decoded first, then cleaned.
func (a *response) respondStored() {
	id, rest, _ := strings.Cut(strings.TrimPrefix(path.Clean(a.r.URL.Path), "/v1/responses/"), "/")
	r := a.stored.get(id)
	switch isGet := a.r.Method == http.MethodGet; {
	case r == nil:
		a.refuse(http.StatusNotFound, "id", "response_not_found", fmt.Sprintf("Response with id '%s' not found.", id))
	case isGet && rest == "":
		a.whole(text(r.json))
	case isGet && rest == "input_items":
		a.whole(text(r.inputItems()))
	case !isGet && rest == "":
		a.stored.delete(id)
		a.whole(text(fmt.Sprintf(`{"id":%q,"object":"response","deleted":true}`, id)))
	default:
		a.fail(http.StatusNotFound, "Unknown request URL")
	}
}

// inputItems returns the list of what the response is a response to, newest first.
func (r *storedResponse) inputItems() string {
	all, first, last := make([]string, 0, len(r.input)), "null", "null"
	for _, i := range slices.Backward(r.input) {
		all = append(all, i.json)
	}
	if len(all) > 0 {
		first, last = quoted(r.input[len(all)-1].id), quoted(r.input[0].id)
	}
	return fmt.Sprintf(`{"object":"list","data":[%s],"first_id":%s,"last_id":%s,"has_more":false}`,
		strings.Join(all, ","), first, last)
}

// join returns the items with commas between them.
func join(items []item) string {
	all := make([]string, len(items))
	for i := range items {
		all[i] = items[i].json
	}
	return strings.Join(all, ",")
}

// readInput returns the items of a request's input, each with an ID, after those of the response that it continues. It
// also returns the tokens that this adds to those of the body. If the request names what is not stored, missing
// responds so.
func (a *response) readInput(input json.RawMessage, previous string) (items []item, carried int64, missing func()) {
	if previous != "" {
		r := a.stored.get(previous)
		if r == nil {
			return nil, 0, func() {
				a.refuse(http.StatusBadRequest, "previous_response_id", "previous_response_not_found",
					fmt.Sprintf("Previous response with id '%s' not found.", previous))
			}
		}
		items, carried = slices.Concat(r.input, r.output), r.all
	}
	var prompt string
	if json.Unmarshal(input, &prompt) == nil && len(input) > 0 {
		const message = `[{"type":"message","role":"user","content":[{"type":"input_text","text":%s}]}]`
		input = fmt.Appendf(nil, message, quoted(prompt))
	}
	var given []json.RawMessage
	_ = json.Unmarshal(input, &given) // an input of another kind has no items
	counted := make(map[*storedResponse]bool)
	for _, one := range given {
		var read struct{ ID, Type, Role string }
		_ = json.Unmarshal(one, &read)
		if read.Type == "item_reference" || read.ID != "" && read.Type == "" && read.Role == "" {
			found, owner := a.stored.find(read.ID)
			if owner == nil {
				return nil, 0, func() {
					a.refuse(http.StatusNotFound, "input", "item_not_found", fmt.Sprintf("Item with id '%s' not found. "+
						"Items are not persisted when `store` is set to false.", read.ID))
				}
			}
			if !counted[owner] {
				counted[owner] = true
				carried += owner.made
			}
			items = append(items, found)
			continue
		}
		items = append(items, a.withID(one, read.ID))
	}
	return items, carried, nil
}

// withID returns an item of the input with its ID, or a new one.
func (a *response) withID(one json.RawMessage, id string) item {
	if id == "" {
		id = a.stored.newID("msg")
		one = append([]byte(`{"id":"`+id+`",`), strings.TrimSpace(strings.TrimSpace(string(one))[1:])...)
	}
	return item{id, string(one)}
}
