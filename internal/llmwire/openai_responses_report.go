package llmwire

import "bytes"

// maxItemIDBytes bounds the IDs of the items of a response together, whose memory nobody counts. OpenAI's have 54 each.
const maxItemIDBytes = 64 << 10

// responsesReport are the members of responses and of the events of their streams. An event has the response so far, an
// item of its output, or a delta of one. The items of a response are its content. In a stream they repeat the deltas,
// and count only as far as those have left something out.
var responsesReport = joined(
	labels.under("item"), responseLabels.under("item"), responseLabels.under("content"),
	usageMembers.under("tool_usage.image_gen"),
	jsonTable[Report]{
		"":         {enter: (*Report).beginResponse, read: (*Report).endResponse},
		"type":     {read: (*Report).readEventType},
		"response": {enter: (*Report).beginRepeated, read: (*Report).endRepeated},
		"id":       {read: (*Report).readResponseID},
		"status":   {read: (*Report).readStatus},

		"incomplete_details.reason": {read: (*Report).readIncompleteReason},

		"response.id":                        {same: "id"},
		"response.status":                    {same: "status"},
		"response.error":                     {same: "error"},
		"response.model":                     {same: "model"},
		"response.usage":                     {same: "usage"},
		"response.tool_usage":                {same: "tool_usage"},
		"response.incomplete_details.reason": {same: "incomplete_details.reason"},
		"response.output":                    {same: "output"},

		"output":   {enter: (*Report).beginOutput, read: (*Report).endOutput},
		"output[]": {same: "item"},

		"item":           {enter: (*Report).beginOutputItem, read: (*Report).endOutputItem},
		"item.id":        {read: (*Report).readItemID},
		"item.type":      {read: (*Report).readOutputType},
		"item.content":   {same: "content"},
		"item.name":      {read: (*Report).readText},
		"item.arguments": {read: (*Report).readInput},
		"item.input":     {read: (*Report).readInput},
		"item.action":    {same: "content.citation"},
		"item.actions":   {same: "content.citation"},
		"item.operation": {same: "content.citation"},
		"item.*":         {same: "content.*"},

		"partial_image_b64": {read: (*Report).readHidden},

		// What tools have used, whose models are not named.
		"tool_usage":           {enter: (*Report).beginIterations, read: (*Report).endIterations},
		"tool_usage.image_gen": {enter: (*Report).beginIteration, read: (*Report).endIteration},
		"tool_usage.web_search.num_requests": {read: func(r *Report, v jsonValue) {
			if n, ok := readCount(v.text); ok {
				r.searches = max(r.searches, n)
			}
		}},
	})

// responseLabels are further labels, that only these responses have.
var responseLabels = jsonTable[Report]{"logprobs": {}, "namespace": {}, "phase": {}}

// A responseRead is what is known of a response that is being read, or of an event of its stream.
type responseRead struct {
	event, status, reason []byte // as they are spelled

	before   int64 // bytes of content when the object began
	repeated int64 // the same when the response in an event began
	inOutput bool  // the output of a response is being read
	searches int64 // items of this output that are searches

	item       []byte // type of the item that was read last
	itemBefore int64  // bytes of content when that began
	itemBytes  int64  // of that, if it is an event's own and not in an output
}

func (r *Report) beginResponse() { r.response = responseRead{before: r.contentBytes} }

func (r *Report) readEventType(v jsonValue) { r.response.event = v.text }

func (r *Report) readStatus(v jsonValue) { r.response.status = v.text }

func (r *Report) readIncompleteReason(v jsonValue) { r.response.reason = v.text }

func (r *Report) beginRepeated() { r.response.repeated = r.contentBytes }

// endRepeated reads the end of the response that an event has. Of its content and that of the events before it, the
// larger counts.
func (r *Report) endRepeated(jsonValue) {
	before := r.response.repeated
	r.contentBytes = max(before, r.contentBytes-before)
}

func (r *Report) beginOutput() { r.response.inOutput = true }

func (r *Report) endOutput(jsonValue) { r.response.inOutput = false }

func (r *Report) beginOutputItem() { r.response.item, r.response.itemBefore = nil, r.contentBytes }

// readOutputType reads the type of an item. What is not known to be text, or a call of a tool of the client's, is
// hidden: more can have been generated than is seen of it.
func (r *Report) readOutputType(v jsonValue) {
	r.response.item = v.text
	switch string(v.text) {
	case `"message"`, `"function_call"`, `"custom_tool_call"`, `"local_shell_call"`, `"apply_patch_call"`,
		`"computer_call"`:
	default:
		r.Hidden = true
	}
}

func (r *Report) endOutputItem(jsonValue) {
	o := &r.response
	if !o.inOutput {
		o.itemBytes = r.contentBytes - o.itemBefore
		r.contentBytes = o.itemBefore
	} else if string(o.item) == `"web_search_call"` {
		o.searches++
	}
}

// endItem reads the end of an event with an item that is complete. What most items say has come in deltas before.
func (r *Report) endItem() {
	o := &r.response
	switch string(o.item) {
	case `"reasoning"`:
	case `"message"`, `"function_call"`, `"custom_tool_call"`, `"mcp_call"`, `"code_interpreter_call"`:
		if r.contentBytes == r.itemsEnd {
			r.contentBytes += o.itemBytes
		}
	default:
		r.contentBytes += o.itemBytes
	}
	r.itemsEnd = r.contentBytes
}

// endResponse reads the end of a response that is not streamed, or of an event.
func (r *Report) endResponse(v jsonValue) {
	r.readObject(v)
	o := &r.response
	isSearch := string(o.item) == `"web_search_call"`
	switch string(o.event) {
	case `"response.completed"`, `"response.incomplete"`, `"response.failed"`:
		r.Done = true
	case `"error"`:
		r.Done = true
		r.fail()
	case `"response.output_item.added"`:
		if isSearch {
			r.searchesBegun++
		}
	case `"response.output_item.done"`:
		if isSearch {
			r.searchesEnded++
		}
		r.endItem()
	case `"response.output_text.delta"`, `"response.function_call_arguments.delta"`,
		`"response.custom_tool_call_input.delta"`:
	case `"response.refusal.delta"`:
		r.refused = true
	default: // an event that is not known, or of what can be seen only in part
		r.contentBytes += o.itemBytes
		r.Hidden = r.Hidden || r.contentBytes > o.before && bytes.HasPrefix(o.event, []byte(`"response.`))
	}
	r.searches = max(r.searches, o.searches, r.searchesBegun, r.searchesEnded)
	r.endWithStatus()
}

// endWithStatus notes whether, and how, the response has ended. An event that ends one says so without a status, too.
func (r *Report) endWithStatus() {
	o := &r.response
	switch end := string(o.status); {
	case end == `"failed"` || end == "" && string(o.event) == `"response.failed"`:
		r.fail()
		r.readStop([]byte(`"failed"`), 0)
	case end == `"incomplete"` || end == "" && string(o.event) == `"response.incomplete"`:
		if len(o.reason) > len(`""`) {
			r.readStop(o.reason, 0)
		} else {
			r.readStop([]byte(`"incomplete"`), 0)
		}
	case end == `"completed"` || end == "" && string(o.event) == `"response.completed"`:
		r.readStop([]byte(`"completed"`), 0)
	case end == `"cancelled"`:
		r.readStop(o.status, 0)
	}
}

func (r *Report) readResponseID(v jsonValue) {
	if id := r.modelName(v.text); len(id) > 0 && string(id) != r.ResponseID {
		r.ResponseID = string(id)
	}
}

func (r *Report) readItemID(v jsonValue) {
	id := r.modelName(v.text)
	if len(id) == 0 || r.hasItem[string(id)] || len(r.ItemIDs) == maxReferences || r.itemIDBytes+len(id) > maxItemIDBytes {
		return
	}
	if r.hasItem == nil {
		r.hasItem = make(map[string]bool)
	}
	name := string(id)
	r.hasItem[name] = true
	r.ItemIDs = append(r.ItemIDs, name)
	r.itemIDBytes += len(name)
}

// forgetItems forgets the IDs of items beyond the first n.
func (r *Report) forgetItems(n int) {
	for _, id := range r.ItemIDs[n:] {
		delete(r.hasItem, id)
	}
}
