package llmwire

import (
	"slices"
	"strconv"
)

const (
	maxStateID    = 256   // bytes of the ID of a response or of an item
	maxReferences = 2_000 // to items, in a request, and items of a response whose IDs are noted
)

var openAIResponses = openAI(format{
	kind:        Text,
	urlSuffix:   "/responses",
	countPath:   "/input_tokens",
	limitMember: func(string) string { return "max_output_tokens" },
	safetyID:    memberName{"", "safety_identifier"},

	rules: requestRules{members: newColumnTable(openAIMembers), isStored: true},
	request: newJSONShape(requestMembers, jsonTable[Request]{
		"store":                {read: (*Request).readStore},
		"previous_response_id": {read: (*Request).readPrevious},
		"prompt":               {read: (*Request).refuse},
		"context_management":   {read: (*Request).refuse},
		"max_output_tokens":    {read: (*Request).readLimit},

		"messages[]":      {enter: (*Request).beginPart, read: (*Request).endItem, each: (*Request).checkMemberCase},
		"messages[].id":   {read: (*Request).readItemID},
		"messages[].role": {read: (*Request).readItemRole},
		"messages[].type": {read: (*Request).readItemType},
	}),
	report: newJSONShape(reportMembers, jsonTable[Report]{
		"id":              {read: (*Report).readResponseID},
		"output[].id":     {read: (*Report).readItemID},
		"item.id":         {read: (*Report).readItemID},
		"response.id":     {read: (*Report).readResponseID},
		"response.output": {same: "output"},
	}),
})

func (r *Request) readStore(v jsonValue) { r.Stored = v.isNull() || r.boolean(v) }

func (r *Request) readPrevious(v jsonValue) { r.Previous = r.stateID(v) }

// An inputItem is what is read of an item or part to find out whether it refers to one that the provider keeps.
type inputItem struct {
	id                      string
	hasID, hasType, hasRole bool // and not null
	isReference             bool // by its type
}

func (r *Request) readItemID(v jsonValue) {
	item := &r.part().item
	if item.hasID {
		r.fail("%s is duplicated", v.path)
	}
	item.hasID, item.id = !v.isNull(), r.stateID(v)
}

func (r *Request) readItemRole(v jsonValue) {
	item := &r.part().item
	if item.hasRole {
		r.fail("%s is duplicated", v.path)
	}
	item.hasRole = !v.isNull()
}

func (r *Request) readItemType(v jsonValue) {
	item := &r.part().item
	if item.hasType {
		r.fail("%s is duplicated", v.path)
	}
	item.hasType = !v.isNull()
	if item.isReference = string(unquoted(v.text)) == "item_reference"; !item.isReference {
		r.readPartType(v)
	}
}

// endItem reads the end of an item or part.
func (r *Request) endItem(v jsonValue) {
	item := r.part().item
	r.endPart(v)
	if item.hasID && (item.isReference || !item.hasType && !item.hasRole) {
		r.addReference(item.id)
	}
}

func (r *Request) addReference(id string) {
	if slices.Contains(r.References, id) {
		return
	}
	if r.References = append(r.References, id); len(r.References) > maxReferences {
		r.fail("The input refers to more than %d items", maxReferences)
	}
}

// stateID returns the ID of what the provider keeps, and "" for null.
func (r *Request) stateID(v jsonValue) string {
	if v.isNull() {
		return ""
	}
	id := string(unquoted(v.text))
	if v.text[0] != '"' || id == "" || len(id) > maxStateID {
		r.fail("%s must be a string of 1 to %s bytes", v.path, strconv.Itoa(maxStateID))
	}
	return id
}

func (r *Report) readResponseID(v jsonValue) {
	if id := r.modelName(v.text); len(id) > 0 && string(id) != r.ResponseID {
		r.ResponseID = string(id)
	}
}

func (r *Report) readItemID(v jsonValue) {
	id := r.modelName(v.text)
	if len(id) == 0 || len(r.ItemIDs) == maxReferences || slices.Contains(r.ItemIDs, string(id)) {
		return
	}
	r.ItemIDs = append(r.ItemIDs, string(id))
}
