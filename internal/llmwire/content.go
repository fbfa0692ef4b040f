package llmwire

// contentTable has the content of a response: a message, a delta, or a block. Every string in it counts that is not a
// label such as an ID, a type or a role. A part of any of these is read in the same way.
//
// What is not known to be text that the client sees, or a call of one of its tools, is hidden: more can have been
// generated than is seen of it.
var contentTable = joined(
	labels.under("content"), labels.under("content.*"), labels.under("content.citation"),
	jsonTable[Report]{
		"content_block":     {same: "content"},
		"delta":             {same: "content"},
		"choices[].message": {same: "content"},
		"choices[].delta":   {same: "content"},
		"choices[].text":    {same: "content"},

		"content":               {read: (*Report).readText},
		"content[]":             {same: "content"},
		"content.content":       {same: "content"},
		"content.text":          {same: "content"},
		"content.tool_calls":    {same: "content"},
		"content.function":      {same: "content"},
		"content.custom":        {same: "content"},
		"content.function_call": {same: "content"},
		"content.type":          {read: (*Report).readContentType},
		"content.name":          {read: (*Report).readText}, // of a tool
		"content.arguments":     {read: (*Report).readInput},
		"content.input":         {read: (*Report).readInput},
		"content.partial_json":  {read: (*Report).readText},
		"content.refusal":       {read: (*Report).readRefusal},

		"content.citation":    {read: (*Report).readText},
		"content.citation[]":  {same: "content.citation"},
		"content.citation.*":  {same: "content.citation"},
		"content.citations":   {same: "content.citation"},
		"content.annotations": {same: "content.citation"},

		"content.*":   {read: (*Report).readHidden}, // all other members
		"content.*[]": {same: "content.*"},
		"content.*.*": {same: "content.*"},
	})

// labels are the members of content whose strings were not generated.
var labels = jsonTable[Report]{
	"call_id": {}, "caller": {}, "container": {}, "created": {}, "detail": {}, "encoding": {}, "expires_at": {},
	"file_id": {}, "finish_reason": {}, "format": {}, "id": {}, "index": {}, "item_id": {}, "media_type": {},
	"mime_type": {}, "model": {}, "object": {}, "obfuscation": {}, "role": {}, "service_tier": {}, "status": {},
	"stop_reason": {}, "stop_sequence": {}, "tool_call_id": {}, "tool_use_id": {}, "type": {}, "usage": {},
}

// readContentType reads the type of a part, a block, a delta or a call.
func (r *Report) readContentType(v jsonValue) {
	switch string(v.text) {
	case `"text"`, `"text_delta"`, `"output_text"`, `"refusal"`, `"citations_delta"`,
		`"function"`, `"custom"`, `"tool_use"`, `"input_json_delta"`, `null`:
	default:
		r.Hidden = true
	}
}

func (r *Report) readText(v jsonValue) { r.addString(v) }

func (r *Report) readRefusal(v jsonValue) { r.refused = r.addString(v) || r.refused }

func (r *Report) readHidden(v jsonValue) { r.Hidden = r.addString(v) || r.Hidden }

// readInput reads the input of a tool: a string, or an object of which everything between the braces counts.
func (r *Report) readInput(v jsonValue) {
	if c := v.text[0]; c == '{' || c == '[' {
		r.object.hasInput = true
		r.contentBytes += int64(len(v.text) - len("{}"))
	} else {
		r.addString(v)
	}
}

// addString counts the bytes that a string spells, and reports whether there are any. Other values have none.
func (r *Report) addString(v jsonValue) bool {
	size := v.stringBytes()
	if size > 0 {
		o := &r.object
		o.strings, o.stringAt, o.stringEnd = o.strings+1, v.from, v.from+len(v.text)
	}
	r.contentBytes += size
	return size > 0
}
