package llmwire

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"

	"tollgate/internal/strict"
)

const (
	maxUntyped   = 64 << 10 // bytes of an event up to where it is known what to do with it
	maxReadEvent = 1 << 20  // bytes of an event of a client that is read whole
)

// ErrEventTooLong is the error of RealtimeScan for an event that is longer than what may be held of it: 64 KiB before
// it is known what to do with it, or 1 MiB if it is read whole. RFC 6455 has the close code 1009 for it.
var ErrEventTooLong = errors.New("the event is too long")

// A RealtimeAction says what is done with an event.
type RealtimeAction int

// The actions.
const (
	HoldEvent RealtimeAction = iota // not known yet: it is kept, and nothing of it is passed on
	PassEvent                       // it is passed on as it comes
	ReadEvent                       // it is kept until it is complete, and read
	DropEvent                       // it is not passed on
)

// A RealtimeError is the refusal of a client's event, which is not passed on. OpenAI's Realtime API tells clients so in
// an event of the type error, and goes on.
type RealtimeError struct {
	Type    string // "" means invalid_request_error
	Code    string
	Message string // a sentence
	Param   string // the path of a member, or ""
	EventID string // of the client's event, or ""
}

func (e *RealtimeError) Error() string { return e.Message }

// Event returns the event that tells the client.
func (e *RealtimeError) Event() []byte {
	kind := e.Type
	if kind == "" {
		kind = "invalid_request_error"
	}
	const format = `{"type":"error","error":{"type":%s,"code":%s,"message":%s,"param":%s,"event_id":%s}}`
	return fmt.Appendf(nil, format,
		jsonString(kind), nullable(e.Code), jsonString(e.Message), nullable(e.Param), nullable(e.EventID))
}

// A realtimeType is what is done with events of a type, and which members they may have.
type realtimeType struct {
	action  RealtimeAction
	members scanName
}

// realtimeTypes has the types of the events that clients may send (RealtimeClientEvent of OpenAI's SDKs).
var realtimeTypes = func() map[string]realtimeType {
	const always = typeName | eventIDName
	return map[string]realtimeType{
		"conversation.item.create":   {PassEvent, always | itemName | previousItemName}, // once the item's type is known
		"conversation.item.delete":   {PassEvent, always | itemIDName},
		"conversation.item.retrieve": {PassEvent, always | itemIDName},
		"conversation.item.truncate": {PassEvent, always | itemIDName | contentIndexName | audioEndName},
		"input_audio_buffer.append":  {PassEvent, always | audioName},
		"input_audio_buffer.clear":   {PassEvent, always},
		"input_audio_buffer.commit":  {PassEvent, always},
		"output_audio_buffer.clear":  {PassEvent, always},
		"response.cancel":            {PassEvent, always | responseIDName},
		"response.create":            {ReadEvent, always | responseName},
		"session.update":             {ReadEvent, always | sessionName},
	}
}()

// A scanPlace is an object in an event that RealtimeScan looks into.
type scanPlace uint8

const (
	elsewhere scanPlace = iota
	inEvent
	inItem
	inItemContent // the array
	inItemPart
)

// maxPlaceDepth is the depth of the innermost place.
const maxPlaceDepth = 4

// scanNames has the members of the objects at the places, each with a bit of its own. Others are refused: nobody knows
// what they cost, or whether a parser that ignores case takes them for one of these.
var scanNames = [...]map[string]scanName{
	inEvent: {
		"type": typeName, "event_id": eventIDName, "item": itemName, "session": sessionName, "response": responseName,
		"audio": audioName, "previous_item_id": previousItemName, "item_id": itemIDName,
		"content_index": contentIndexName, "audio_end_ms": audioEndName, "response_id": responseIDName,
	},
	inItem: {
		"type": typeName, "content": contentName, "id": otherName << 0, "object": otherName << 1, "status": otherName << 2,
		"role": otherName << 3, "call_id": otherName << 4, "name": otherName << 5, "arguments": otherName << 6,
		"output": otherName << 7,
	},
	inItemPart: {
		"type": typeName, "text": otherName << 0, "audio": otherName << 1, "transcript": otherName << 2,
		"image_url": otherName << 3, "detail": otherName << 4,
	},
}

// A scanName is a set of members of an object.
type scanName uint32

const (
	typeName scanName = 1 << iota
	eventIDName
	itemName
	contentName
	sessionName
	responseName
	audioName
	previousItemName
	itemIDName
	contentIndexName
	audioEndName
	responseIDName
	otherName // and those above it
)

// realtimeItems and realtimeParts have the types of items, and of the parts of messages, that clients may send
// (ConversationItem of OpenAI's SDKs). A reference to an item could repeat it for ever, and tools of MCP run at the
// provider.
var (
	realtimeItems = newColumnTable(listing{
		known: []string{"message", "function_call", "function_call_output"},
		refused: []string{
			"item_reference", "mcp_approval_request", "mcp_approval_response", "mcp_call", "mcp_list_tools",
		},
	})
	realtimeParts = newColumnTable(listing{
		known: []string{"input_text", "input_audio", "input_image", "output_text", "output_audio", "text", "audio"},
	})
)

// A RealtimeScan reads an event that a client sends to OpenAI's Realtime API while it comes, in parts of any size, and
// says as early as possible what is done with it. It decodes and keeps nothing but the names and types that decide
// that, and does not allocate unless it refuses an event. Whether an event is valid UTF-8 it does not check. The zero
// value is ready to read one event.
type RealtimeScan struct {
	json     jsonParts
	bytes    int64 // that were read
	released int64 // bytes that may be passed on while the event is not complete
	kind     realtimeType
	err      error

	needsItem bool // the event creates an item, whose type must be known
	hasItem   bool // the type of an item is known

	places  [maxPlaceDepth + 1]scanPlace // by depth
	seen    [maxPlaceDepth + 1]scanName  // members of the object at that depth
	member  scanName                     // whose value is read next, of the innermost object if that is at a place
	scratch [maxKeptString]byte

	eventID    [maxKeptString]byte
	eventIDLen int
}

// Reset makes s ready for the next event.
func (s *RealtimeScan) Reset() { *s = RealtimeScan{} }

// Read reads the next part of the event. An error, which all later calls return too, is ErrEventTooLong or a
// *RealtimeError. Then nothing more of the event may be passed on. If some of it was, both sides are to be closed.
func (s *RealtimeScan) Read(part []byte) (RealtimeAction, error) {
	for len(part) > 0 && s.err == nil {
		room := part
		if most := s.most(); most > 0 && s.bytes+int64(len(part)) > most {
			if room = part[:most-s.bytes]; len(room) == 0 {
				s.err = ErrEventTooLong
				break
			}
		}
		n, token := s.json.next(room)
		s.bytes += int64(n)
		part = part[n:]
		s.readToken(token)
		if s.json.depth > 0 {
			s.released = s.bytes
		}
	}
	if s.err != nil {
		return DropEvent, s.err
	}
	return s.decided(), nil
}

// most returns how many bytes the event may have as far as it is known, and 0 if that is for others to say.
func (s *RealtimeScan) most() int64 {
	switch s.decided() {
	case HoldEvent:
		return maxUntyped
	case ReadEvent:
		return maxReadEvent
	}
	return 0
}

// decided returns the action, as far as the event may be passed on already.
func (s *RealtimeScan) decided() RealtimeAction {
	if s.needsItem && !s.hasItem {
		return HoldEvent
	}
	return s.kind.action
}

// Released returns how many bytes of the event, from its start, may be passed on. The last ones, from the brace that
// ends it, may be passed on once End has returned no error.
func (s *RealtimeScan) Released() int64 {
	if s.err != nil || s.decided() != PassEvent {
		return 0
	}
	return s.released
}

// End returns the action for the event, which is complete: PassEvent or ReadEvent, unless there is an error as Read
// returns it.
func (s *RealtimeScan) End() (RealtimeAction, error) {
	switch {
	case s.err != nil:
	case !s.json.isDone():
		s.refuse("invalid_json", "", "The event is not valid JSON: it ends too early.")
	case s.kind.action == HoldEvent:
		s.refuse("missing_required_parameter", "type", "The event has no type.")
	case s.decided() == HoldEvent:
		s.refuse("missing_required_parameter", "item.type", "The item has no type.")
	}
	if s.err != nil {
		return DropEvent, s.err
	}
	return s.kind.action, nil
}

func (s *RealtimeScan) refuse(code, param, message string) {
	s.err = &RealtimeError{Code: code, Message: message, Param: param, EventID: string(s.eventID[:s.eventIDLen])}
}

// place returns where the innermost open array or object is.
func (s *RealtimeScan) place() scanPlace { return s.placeAt(s.json.depth) }

// placeAt returns where the open array or object at a depth is.
func (s *RealtimeScan) placeAt(depth int) scanPlace {
	if depth > maxPlaceDepth {
		return elsewhere
	}
	return s.places[depth]
}

func (s *RealtimeScan) readToken(token jsonToken) {
	switch token {
	case invalidToken:
		s.refuse("invalid_json", "", "The event is not valid JSON at byte "+strconv.FormatInt(s.bytes, 10)+".")
	case nameToken:
		if place := s.place(); place != elsewhere {
			s.readName(place)
		}
	case stringToken:
		s.readString()
	case scalarToken:
		s.wantNo(s.json.depth, typeName|itemName|contentName)
	case openToken:
		s.open()
	case closeToken:
		s.close()
	}
}

// readName reads the name of a member of an object at a place.
func (s *RealtimeScan) readName(place scanPlace) {
	text := s.json.text(s.scratch[:])
	s.member = scanNames[place][string(text)]
	depth := s.json.depth
	switch {
	case s.member == 0:
		s.refuse("unknown_parameter", placePaths[place], "The event has the member "+quoted(text)+", which is not supported.")
	case s.seen[depth]&s.member != 0:
		s.refuse("invalid_value", placePaths[place], "The event has "+quoted(text)+" twice.")
	case s.member != typeName: // which is known once its value was read
		s.seen[depth] |= s.member
		s.checkMembers()
	}
}

// placePaths has the paths of the places.
var placePaths = [...]string{
	inEvent: "", inItem: "item", inItemContent: "item.content", inItemPart: "item.content[]",
}

// wantNo refuses a value that is not what the next member of the object at depth, or the array there, has.
func (s *RealtimeScan) wantNo(depth int, members scanName) {
	switch place := s.placeAt(depth); {
	case place == inItemContent:
		s.refuse("invalid_type", placePaths[place], "A part of the content must be an object.")
	case place != elsewhere && s.member&members != 0:
		s.refuse("invalid_type", placePaths[place], "The event has a member of a wrong type.")
	}
}

// open reads the start of an array or object.
func (s *RealtimeScan) open() {
	depth := s.json.depth
	if depth > maxPlaceDepth {
		return
	}
	inside, isArray := elsewhere, s.json.inArray()
	switch around := s.places[depth-1]; {
	case depth == 1:
		inside = inEvent
	case around == inEvent && s.member == itemName && !isArray:
		inside = inItem
	case around == inItem && s.member == contentName && isArray:
		inside = inItemContent
	case around == inItemContent && !isArray:
		inside = inItemPart
	default:
		s.wantNo(depth-1, typeName|itemName|contentName|eventIDName)
	}
	s.places[depth], s.seen[depth] = inside, 0
}

// close reads the end of an array or object.
func (s *RealtimeScan) close() {
	if depth := s.json.depth + 1; s.placeAt(depth) == inItemPart && s.seen[depth]&typeName == 0 {
		s.refuse("missing_required_parameter", "item.content[].type", "A part of the content has no type.")
	}
}

// readString reads a string, which may be a type.
func (s *RealtimeScan) readString() {
	place := s.place()
	if place == elsewhere {
		return
	}
	s.wantNo(s.json.depth, itemName|contentName)
	if s.err != nil || s.member&(typeName|eventIDName) == 0 {
		return
	}
	text := s.json.text(s.scratch[:])
	if s.member == eventIDName {
		s.eventIDLen = copy(s.eventID[:], text)
		if bytes.HasPrefix(text, []byte(OwnRealtimeID)) {
			s.refuse("invalid_value", "event_id", "The IDs that begin with "+OwnRealtimeID+" are the gateway's.")
		}
		return
	}
	s.seen[s.json.depth] |= typeName
	s.readType(place, text)
}

// readType reads the type of what is at a place.
func (s *RealtimeScan) readType(place scanPlace, kind []byte) {
	isKnown := false
	switch place {
	case inEvent:
		s.kind, isKnown = realtimeTypes[string(kind)]
		s.needsItem = string(kind) == "conversation.item.create"
	case inItem:
		isKnown = realtimeItems.of(kind) == known
		s.hasItem = true
	case inItemPart:
		isKnown = realtimeParts.of(kind) == known
	}
	switch {
	case isKnown:
		s.checkMembers()
	case place == inEvent:
		s.refuse("unknown_event", "type", "Events of the type "+quoted(kind)+" are not supported.")
	default:
		s.refuse("invalid_value", placePaths[place]+".type", "The type "+quoted(kind)+" is not supported here.")
	}
}

// quoted returns a name or type as a sentence has it.
func quoted(text []byte) string { return strconv.Quote(strict.Shorten(string(text))) }

// checkMembers refuses members that events of the type do not have.
func (s *RealtimeScan) checkMembers() {
	if s.kind.action != HoldEvent && s.seen[1]&^s.kind.members != 0 {
		s.refuse("unknown_parameter", "", "The event has a member that events of its type do not have.")
	}
}
