package llmwire

import (
	"bytes"
	"slices"
)

// messageParts are the content parts in messages, in results of tools and in documents. A message is read as a part.
var messageParts = jsonTable[Request]{
	"messages[]":                  {enter: (*Request).beginPart, read: (*Request).endPart},
	"messages[].content[]":        {same: "messages[]"},
	"messages[].source.content[]": {same: "messages[]"},

	"messages[].type":             {read: (*Request).readPartType},
	"messages[].source.type":      {read: (*Request).readSourceType},
	"messages[].source.data":      {read: (*Request).readData},
	"messages[].input_audio.data": {read: (*Request).readData},
	"messages[].file.file_data":   {read: (*Request).readData},
	"messages[].source.url":       {read: (*Request).readDataURL},
	"messages[].image_url":        {read: (*Request).readDataURL},
	"messages[].image_url.url":    {read: (*Request).readDataURL},
	"messages[].audio_url.url":    {read: (*Request).readDataURL},
	"messages[].video_url.url":    {read: (*Request).readDataURL},
}

// A contentPart is a part that is being read. Those around it are before it in Request.parts.
type contentPart struct {
	isMedia bool
	isText  bool  // its data is not base64
	encoded int64 // bytes of base64
}

func (r *Request) beginPart() { r.parts = append(r.parts, contentPart{}) }

// part returns the innermost part that is being read.
func (r *Request) part() *contentPart { return &r.parts[len(r.parts)-1] }

func (r *Request) endPart(jsonValue) {
	if part := r.part(); part.isMedia {
		r.mediaParts++
		if !part.isText {
			r.mediaBytes += part.encoded
		}
	}
	r.parts = r.parts[:len(r.parts)-1]
}

func (r *Request) readPartType(v jsonValue) {
	switch string(unquoted(v.text)) {
	case "image", "image_url", "input_audio", "audio_url", "video_url", "document", "file":
		r.part().isMedia = true
	}
}

func (r *Request) readSourceType(v jsonValue) {
	if string(v.text) != `"base64"` {
		r.part().isText = true
	}
}

func (r *Request) readData(v jsonValue) { r.part().encoded += base64Length(v.text, true) }

func (r *Request) readDataURL(v jsonValue) { r.part().encoded += base64Length(v.text, false) }

// base64Length returns how many bytes of a JSON value are base64, as they are spelled: in a data URL of a medium what
// follows the comma and, if bare is true, in any other string all of it. It returns 0 if there is anything but base64,
// which counts as text.
func base64Length(raw []byte, bare bool) int64 {
	if raw[0] != '"' {
		return 0
	}
	data := raw[1 : len(raw)-1]
	head, rest, isURL := bytes.Cut(data, []byte(";base64,"))
	if isURL {
		isMedia := func(prefix string) bool { return bytes.HasPrefix(head, []byte(prefix)) }
		if !slices.ContainsFunc(mediaURLs, isMedia) {
			return 0
		}
		data = rest
	} else if !bare {
		return 0
	}
	for i, c := range data {
		isSlash := c == '\\' && i+1 < len(data) && data[i+1] == '/' // some encoders escape it
		if !isBase64[c] && !isSlash {
			return 0
		}
	}
	return int64(len(data))
}

// mediaURLs has how data URLs of media begin. Those of text are not among them.
var mediaURLs = []string{"data:image", "data:audio", "data:video", "data:application", "data:;"}

// isBase64 has the bytes of both alphabets of base64 and of its padding (RFC 4648).
var isBase64 = func() (set [256]bool) {
	for _, c := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_=") {
		set[c] = true
	}
	return set
}()
