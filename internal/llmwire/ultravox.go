package llmwire

import (
	"fmt"
	"slices"
	"unicode/utf8"
)

// MaxUltravoxMessage is the most bytes of a text message that a client may send to Ultravox: it is read whole.
const MaxUltravoxMessage = 64 << 10

// UltravoxHangUp is the message that ends a call.
const UltravoxHangUp = `{"type":"hang_up"}`

// ultravoxTypes has the messages that clients may send to Ultravox, and their members
// (https://docs.ultravox.ai/apps/datamessages). Threads, which spawn_thread begins, cost tokens beside the time of the
// call. A client may not invoke tools itself, so forced_agent_message has no toolCalls.
var ultravoxTypes = map[string][]string{
	"ping":                 {"timestamp"},
	"user_text_message":    {"text", "urgency", "deferResponse"},
	"set_output_medium":    {"medium"},
	"forced_agent_message": {"content", "uninterruptible", "urgency"},
	"hang_up":              {"message"},
	"client_tool_result": {
		"invocationId", "result", "responseType", "agentReaction", "errorType", "errorMessage", "updateCallState",
	},
}

// CheckUltravox checks a text message that a client sends to Ultravox. It must be an object of one of the types that
// cost nothing but time, with members that its type has, each once. The error is a *RealtimeError.
func CheckUltravox(message []byte) error {
	r := new(ultravoxReader)
	err := r.walker.walk(message, ultravoxShape, r)
	members, isKnown := ultravoxTypes[r.kind]
	switch {
	case r.refusal != nil:
	case err != nil || !utf8.Valid(message) || !r.isObject:
		r.refuse("invalid_json", "", "The message is not a valid JSON object.")
	case !isKnown:
		r.refuse("unknown_event", "type", "Messages of the type %s are not supported.", quoted([]byte(r.kind)))
	}
	for _, name := range r.members {
		if name != "type" && !slices.Contains(members, name) {
			r.refuse("unknown_parameter", name, "A message of the type %s has no %s.", r.kind, name)
		}
	}
	if r.refusal != nil {
		return r.refusal
	}
	return nil
}

// An ultravoxReader reads a message of a client.
type ultravoxReader struct {
	walker   jsonWalker[ultravoxReader]
	isObject bool
	kind     string   // "" if it has none
	members  []string // that were read
	refusal  *RealtimeError
}

// refuse ends the reading with an error, unless there is one already.
func (r *ultravoxReader) refuse(code, param, format string, args ...any) {
	if r.refusal == nil {
		r.refusal = &RealtimeError{Code: code, Param: param, Message: fmt.Sprintf(format, args...)}
		r.walker.stop()
	}
}

var ultravoxShape = func() *jsonShape[ultravoxReader] {
	table := jsonTable[ultravoxReader]{
		"": {each: (*ultravoxReader).addMember, read: func(r *ultravoxReader, v jsonValue) {
			r.isObject = v.text[0] == '{'
		}},
	}
	for _, members := range ultravoxTypes {
		for _, name := range members {
			table[name] = jsonRow[ultravoxReader]{}
		}
	}
	table["type"] = jsonRow[ultravoxReader]{read: (*ultravoxReader).readKind}
	table["responseType"] = jsonRow[ultravoxReader]{read: (*ultravoxReader).readResponse}
	return newJSONShape(table)
}()

// addMember refuses a member that no message has, or that is there twice.
func (r *ultravoxReader) addMember(object *jsonShape[ultravoxReader], name []byte, _ jsonValue) {
	switch member := string(name); {
	case object.members[member] == nil:
		r.refuse("unknown_parameter", "", "The message has the member %s, which is not supported.", quoted(name))
	case slices.Contains(r.members, member):
		r.refuse("invalid_value", member, "The message has %s twice.", member)
	default:
		r.members = append(r.members, member)
	}
}

func (r *ultravoxReader) readKind(v jsonValue) {
	if v.text[0] == '"' {
		r.kind = string(unquoted(v.text))
	}
}

// readResponse refuses the result of a tool that begins a new stage: that may have tools, which call other servers
// (https://docs.ultravox.ai/tools/custom/changing-call-state).
func (r *ultravoxReader) readResponse(v jsonValue) {
	switch kind := string(unquoted(v.text)); {
	case v.isNull():
	case v.text[0] == '"' && (kind == "tool-response" || kind == "hang-up"):
	default:
		r.refuse("invalid_value", v.path, "The value %s of responseType is not supported.", quoted([]byte(kind)))
	}
}

// An UltravoxScan finds the message call_started among those that Ultravox sends, each while it comes, in parts of any
// size. It keeps nothing of them but the names of members and the type. The zero value is ready to read the first
// message.
type UltravoxScan struct {
	json    jsonParts
	isType  bool // the value that is read next is the type
	isOver  bool // the message is not valid JSON
	started bool
	scratch [maxKeptString]byte
}

// Read reads the next part of a message, last if it ends that, and reports whether call_started has come so far.
func (s *UltravoxScan) Read(part []byte, last bool) bool {
	for len(part) > 0 && !s.isOver && !s.started {
		n, token := s.json.next(part)
		part = part[n:]
		s.isOver = token == invalidToken
		if s.json.depth != 1 || token != nameToken && token != stringToken {
			continue
		}
		text := s.json.text(s.scratch[:])
		s.started = token == stringToken && s.isType && string(text) == "call_started"
		s.isType = token == nameToken && string(text) == "type"
	}
	if last {
		*s = UltravoxScan{started: s.started}
	}
	return s.started
}
