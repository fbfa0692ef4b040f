package llmwire

import (
	"fmt"
	"slices"
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
	smallest:    `{"input":"a"}`,
	leastLimit:  16, // at OpenAI: "integer below minimum value"
	safetyID:    memberName{"", "safety_identifier"},

	rules: requestRules{
		members:  newColumnTable(openAIResponsesMembers...),
		tools:    newColumnTable(openAIResponsesTools),
		parts:    newColumnTable(openAIResponsesParts),
		messages: "input[]",
		isStored: true,
	},
	request: newJSONShape(requestMembers, responsesMembers),
	report:  newJSONShape(reportMembers, responsesReport),

	errorEvent: func(status int, message string) []byte {
		code, body := openAIErrorTypes[status].code, openAIErrorBody(status, errorText{message: message})
		// The documentation has no member error. The SDKs raise an error only if there is one.
		const format = `{"type":"error","code":%s,"message":%s,"param":null,%s`
		return fmt.Appendf(nil, "event: error\ndata: "+format+"\n\n", nullable(code), jsonString(message), body[1:])
	},
})

// responsesMembers are the members of requests that only responses have, or that have another meaning there.
var responsesMembers = jsonTable[Request]{
	"store":                {read: (*Request).readStore},
	"previous_response_id": {read: (*Request).readPrevious},
	"prompt":               {read: (*Request).refuse},
	"context_management":   {read: (*Request).refuse},
	"input":                {read: (*Request).readInput},
	"input[]":              {same: "messages[]"},
	"text":                 {each: (*Request).checkMemberCase},
	"text.format":          {read: (*Request).readSchema},
	"instructions":         {same: "messages[]", orArray: true},
	"reasoning.mode":       {read: (*Request).readExecutionMode},

	"prompt_cache_options.comparison_response_id": {read: (*Request).readReferenceTo},

	// An item of the input is read as a message.
	"messages[]":           {enter: (*Request).beginItem, read: (*Request).endItem, each: (*Request).checkItemMember},
	"messages[].id":        {read: (*Request).readItemID},
	"messages[].role":      {read: (*Request).readItemRole},
	"messages[].type":      {read: (*Request).readItemType},
	"messages[].text":      {read: (*Request).readSchema}, // or the format of text, in an update of the configuration
	"messages[].arguments": {read: (*Request).readSchema},
	"messages[].action":    {read: (*Request).readSchema},
	"messages[].actions":   {read: (*Request).readSchema},
	"messages[].operation": {read: (*Request).readSchema},
	"messages[].queries":   {read: (*Request).readSchema},
	"messages[].results":   {read: (*Request).readSchema},
	"messages[].error":     {read: (*Request).readSchema},
	"messages[].code":      {read: (*Request).readText},
	"messages[].logs":      {read: (*Request).readText},
	"messages[].stdout":    {read: (*Request).readText},
	"messages[].stderr":    {read: (*Request).readText},
	"messages[].output":    {same: "messages[]", orArray: true},
	"messages[].outputs":   {same: "messages[]", orArray: true},
	"messages[].summary":   {same: "messages[]", orArray: true},
	"messages[].tools":     {read: (*Request).readArray},
	"messages[].result":    {read: (*Request).readResult},

	"messages[].encrypted_content": {read: (*Request).readEncrypted},

	"tools[].tools": {read: (*Request).readArray},
	"tools[].environment": {
		enter: (*Request).beginEnvironment, read: (*Request).endEnvironment, each: (*Request).checkMemberCase,
	},
	"tools[].environment.type": {read: (*Request).readEnvironmentType},
	"tools[].execution":        {read: (*Request).readExecution},
	"tools[].output_schema":    {read: (*Request).readSchema},
}

// readInput reads the end of the input: a text, or items.
func (r *Request) readInput(v jsonValue) {
	switch v.text[0] {
	case '[', 'n':
	case '"':
		r.input.messages++
		r.readText(v)
	default:
		r.fail("input must be a string or an array")
	}
}

func (r *Request) readStore(v jsonValue) { r.Stored = v.isNull() || r.boolean(v) }

func (r *Request) readPrevious(v jsonValue) { r.Previous = r.stateID(v) }

// readExecutionMode reads how the model is to reason: it may do so several times over.
func (r *Request) readExecutionMode(v jsonValue) {
	if !v.isNull() && string(unquoted(v.text)) != "standard" {
		r.addUnknown("reasoning")
	}
}

// An inputItem is what is read of an item, or of a part of one, to find out whether the provider has to look it up by
// its ID.
type inputItem struct {
	id, kind  jsonValue // as they are spelled; without text if they are absent or null
	hasRole   bool
	encrypted int64 // bytes of what only the provider can read
	result    int64 // bytes of the result of a tool
	members   uint8 // a bit for each of uniqueMembers that was read

	hasContent bool // it has a member beside these, but for its status
}

// uniqueMembers are the members that an item may not have twice, since another parser could read the other one.
var uniqueMembers = [...]string{"id", "type", "role", "encrypted_content", "result"}

func (r *Request) beginItem() {
	r.beginPart()
	r.items = append(r.items, inputItem{})
}

// item returns the innermost item that is being read.
func (r *Request) item() *inputItem { return &r.items[len(r.items)-1] }

func (r *Request) checkItemMember(object *jsonShape[Request], name []byte, v jsonValue) {
	item := r.item() // or, if the member is a part, that
	at := slices.IndexFunc(uniqueMembers[:], func(unique string) bool { return string(name) == unique })
	if at < 0 {
		item.hasContent = item.hasContent || !v.isNull() && string(name) != "status"
		r.checkCase(object, name)
		return
	}
	bit := uint8(1) << at
	if item.members&bit != 0 {
		r.fail("%s is duplicated", memberName{object.path, uniqueMembers[at]})
	}
	item.members |= bit
}

func (r *Request) readItemID(v jsonValue) {
	if !v.isNull() {
		r.item().id = v
	}
}

func (r *Request) readItemRole(v jsonValue) { r.item().hasRole = !v.isNull() && string(v.text) != `""` }

// readItemType reads the type of an item or of a part of one.
func (r *Request) readItemType(v jsonValue) {
	r.readPartType(v)
	if v.isNull() {
		return
	}
	r.item().kind = v
	switch string(unquoted(v.text)) {
	case "computer_screenshot", "image_generation_call":
		r.addMedium(image)
	case "compaction_trigger":
		r.Twice = true // a summary of the conversation, beside the response
	case "configuration_update":
		r.asksHidden = true // of the effort, perhaps
	}
}

// readEncrypted and readResult read what the provider has generated earlier.
func (r *Request) readEncrypted(v jsonValue) {
	r.readText(v)
	r.item().encrypted = v.stringBytes()
}

func (r *Request) readResult(v jsonValue) {
	r.addData(v, true)
	r.item().result = v.stringBytes()
}

// endItem reads the end of an item or of a part of one.
func (r *Request) endItem(v jsonValue) {
	item := r.item()
	if r.part().medium == noMedium {
		r.input.text += item.result
	}
	if item.id.text != nil && r.isReference(item) {
		r.readReferenceTo(item.id)
	}
	r.items = r.items[:len(r.items)-1]
	if len(r.items) > 0 && !v.isNull() {
		r.item().hasContent = true
	}
	r.endPart(v)
}

// isReference reports whether the provider looks an item up by its ID, or may do so: OpenAI with reasoning, summaries
// and images that are not in the body, and any provider with an item that has nothing in it, or a type that is not
// known here.
func (r *Request) isReference(item *inputItem) bool {
	if item.kind.text == nil {
		return !item.hasRole || !item.hasContent
	}
	switch kind := unquoted(item.kind.text); string(kind) {
	case "":
		return !item.hasRole || !item.hasContent
	case "item_reference":
		return true
	case "reasoning", "compaction":
		return item.encrypted == 0
	case "image_generation_call":
		return item.result == 0
	default:
		return !item.hasContent || !r.knowsPart(kind)
	}
}

// readReferenceTo reads a member with the ID of a response.
func (r *Request) readReferenceTo(v jsonValue) {
	if id := r.stateID(v); id != "" {
		r.addReference(id)
	}
}

// addReference notes the ID of something that the provider keeps.
func (r *Request) addReference(id string) {
	if r.referred[id] {
		return
	}
	if r.referred == nil {
		r.referred = make(map[string]bool)
	}
	r.referred[id] = true
	if r.References = append(r.References, id); len(r.References) > maxReferences {
		r.fail("The input refers to more than %d items", maxReferences)
	}
}

// stateID returns the ID of something that the provider keeps, and "" for null.
func (r *Request) stateID(v jsonValue) string {
	if v.isNull() {
		return ""
	}
	id := unquoted(v.text)
	if v.text[0] != '"' || len(id) == 0 || len(id) > maxStateID {
		r.fail("%s must be a string of 1 to %d bytes", v.path, maxStateID)
		return ""
	}
	return string(id)
}

// beginEnvironment, readEnvironmentType and endEnvironment read where a shell runs.
func (r *Request) beginEnvironment() { r.tool().environment.hasType = false }

func (r *Request) readEnvironmentType(v jsonValue) {
	r.tool().environment.set(string(unquoted(v.text)) == "local")
}

func (r *Request) endEnvironment(jsonValue) {
	if place := &r.tool().environment; !place.hasType {
		place.set(false)
	}
}

// readExecution reads where a search for tools runs.
func (r *Request) readExecution(v jsonValue) {
	r.tool().execution.set(string(unquoted(v.text)) == "client")
}
