package llmwire

import (
	"bytes"
	"slices"
)

// messageParts are the content parts in messages, in the system prompt, in results of tools and in documents. A message
// is read as a part, and so is the content of one: text, a part, or parts.
var messageParts = jsonTable[Request]{
	"messages":                  {read: (*Request).readArray},
	"messages[]":                {enter: (*Request).beginPart, read: (*Request).endPart, each: (*Request).checkMemberCase},
	"messages[].content":        {same: "messages[]", orArray: true},
	"messages[].source.content": {same: "messages[]", orArray: true},
	"messages[].images[]":       {same: "messages[]"}, // of an assistant
	"system":                    {same: "messages[]", orArray: true},
	"input":                     {same: "messages[]", orArray: true}, // of OpenAI's other API, if an endpoint allows it

	"messages[].type":                    {read: (*Request).readPartType},
	"messages[].cache_control":           {same: "cache_control"},
	"messages[].prompt_cache_breakpoint": {same: "prompt_cache_options"},

	"messages[].text":                   {read: (*Request).readText},
	"messages[].title":                  {read: (*Request).readText},
	"messages[].context":                {read: (*Request).readText},
	"messages[].thinking":               {read: (*Request).readText},
	"messages[].refusal":                {read: (*Request).readText},
	"messages[].reasoning":              {read: (*Request).readText},
	"messages[].reasoning_content":      {read: (*Request).readText},
	"messages[].name":                   {read: (*Request).readText},
	"messages[].data":                   {read: (*Request).readText}, // of thinking that is not shown
	"messages[].encrypted_content":      {read: (*Request).readText}, // of what was found
	"messages[].reasoning_details":      {read: (*Request).readSchema},
	"messages[].input":                  {read: (*Request).readSchema}, // of a tool
	"messages[].function_call":          {same: "messages[].tool_calls[]"},
	"messages[].tool_calls[].name":      {read: (*Request).readText},
	"messages[].tool_calls[].arguments": {read: (*Request).readSchema},
	"messages[].tool_calls[].input":     {read: (*Request).readSchema},
	"messages[].tool_calls[].function":  {same: "messages[].tool_calls[]"},
	"messages[].tool_calls[].custom":    {same: "messages[].tool_calls[]"},

	"messages[].source": { // or where a text was found
		read: (*Request).readText, each: (*Request).checkMemberCase,
	},
	"messages[].source.type":       {read: (*Request).readSourceType},
	"messages[].source.media_type": {read: (*Request).readMediaType},
	"messages[].source.data":       {read: (*Request).readData},
	"messages[].source.url":        {read: (*Request).readDataURL},
	"messages[].source.file_id":    {read: (*Request).readReference},

	"messages[].image_url":        {read: (*Request).readImage},
	"messages[].image_url.url":    {read: (*Request).readDataURL},
	"messages[].input_audio":      {read: (*Request).readSound},
	"messages[].input_audio.data": {read: (*Request).readData},
	"messages[].audio_url":        {read: (*Request).readSound},
	"messages[].audio_url.url":    {read: (*Request).readDataURL},
	"messages[].audio":            {read: (*Request).readAudio}, // of an earlier response
	"messages[].video_url":        {read: (*Request).readVideo},
	"messages[].video_url.url":    {read: (*Request).readDataURL},
	"messages[].file":             {read: (*Request).readFile, each: (*Request).checkMemberCase},
	"messages[].file.file_data":   {read: (*Request).readData},
	"messages[].file.file_id":     {read: (*Request).readReference},
	"messages[].file.file_url":    {read: (*Request).readFile},
	"messages[].file.url":         {read: (*Request).readFile},
	"messages[].document_url":     {read: (*Request).readFile},
	"messages[].file_data":        {read: (*Request).readData},
	"messages[].file_url":         {read: (*Request).readFile},
	"messages[].file_id":          {read: (*Request).readReference},
}

// A medium is a kind of content by what it can cost. Of two kinds the later one is dearer.
type medium int

const (
	noMedium medium = iota
	image
	sound
	file // a document, whose pages may be images
	video
)

// A contentPart is a part that is being read. Those around it are before it in Request.parts.
type contentPart struct {
	medium   medium
	isText   bool  // it says that its data is text
	isBase64 bool  // it says that its data is base64
	isRemote bool  // it says that its data is not in the body
	data     int64 // bytes of its data in the body
	encoded  int64 // bytes of that which can be base64, as they are spelled
}

func (r *Request) beginPart() { r.parts = append(r.parts, contentPart{}) }

// part returns the innermost part that is being read.
func (r *Request) part() *contentPart { return &r.parts[len(r.parts)-1] }

// endPart reads the end of a message or part.
func (r *Request) endPart(v jsonValue) {
	part := *r.part()
	r.parts = r.parts[:len(r.parts)-1]
	if len(r.parts) == 0 {
		r.input.messages++
	}
	r.readText(v)
	if v.path == "messages[]" && v.text[0] == '[' { // nothing in it was read
		r.fail("A message, or a part of one, must not be an array")
	}
	if part.medium != noMedium {
		r.countMedium(&part)
	}
}

// countMedium counts a part that is a medium.
func (r *Request) countMedium(part *contentPart) {
	r.HasAudio = r.HasAudio || part.medium == sound || part.medium == video
	r.HasImages = r.HasImages || part.medium != sound
	if part.isText {
		r.input.text += part.data
	} else {
		r.input.base64 += part.encoded
	}
	switch {
	case part.medium < file:
		r.input.media++
	case part.isText && !part.isBase64 && !part.isRemote: // is held by its bytes in the body
	case part.encoded > 0 && !part.isText && !part.isRemote:
		r.input.fileBytes = append(r.input.fileBytes, part.encoded/4*3)
	default:
		r.input.files++
	}
}

// readPartType reads the type of a part. One that is not known may be read by what the provider runs, and may be
// anything.
func (r *Request) readPartType(v jsonValue) {
	if v.isNull() {
		return
	}
	kind := unquoted(v.text)
	switch string(kind) {
	case "image", "image_url", "input_image":
		r.addMedium(image)
	case "input_audio", "audio_url":
		r.addMedium(sound)
	case "document", "document_url", "file", "input_file", "container_upload":
		r.addMedium(file)
	case "video_url":
		r.addMedium(video)
	}
	if !r.knowsPart(kind) {
		r.addServerType(kind)
		r.tools.isElsewhere, r.HasAudio, r.HasImages = true, true, true
	}
}

// knowsPart reports whether the type of a part is known, and adds nothing to the input that is not counted.
func (r *Request) knowsPart(kind []byte) bool {
	return partTypes.of(kind) == known || r.rules.parts.of(kind) == known
}

func (r *Request) addMedium(m medium) { r.part().medium = max(r.part().medium, m) }

// readSourceType reads where the data of a part are. Those that are in the body, but no base64, count as text.
func (r *Request) readSourceType(v jsonValue) {
	switch string(unquoted(v.text)) {
	case "base64":
		r.part().isBase64 = true
	case "text", "content":
		r.part().isText = true
	default:
		r.part().isText, r.part().isRemote = true, true
	}
}

// readMediaType reads what the data of a part are. Some servers go by that, and not by the type of the part.
func (r *Request) readMediaType(v jsonValue) {
	kind, _, _ := bytes.Cut(bytes.ToLower(unquoted(v.text)), []byte("/"))
	switch string(kind) {
	case "null", "image":
	case "audio":
		r.addMedium(sound)
	case "video":
		r.addMedium(video)
	default:
		r.addMedium(file)
	}
}

// readReference reads the ID of a file at the provider.
func (r *Request) readReference(v jsonValue) { r.part().isRemote = r.part().isRemote || !v.isNull() }

// readImage and its like read a member that makes a part a medium, whatever its type is: some servers know a part by
// its members. It may be a URL itself.
func (r *Request) readImage(v jsonValue) { r.readMedium(v, image) }
func (r *Request) readSound(v jsonValue) { r.readMedium(v, sound) }
func (r *Request) readFile(v jsonValue)  { r.readMedium(v, file) }
func (r *Request) readVideo(v jsonValue) { r.readMedium(v, video) }

func (r *Request) readMedium(v jsonValue, m medium) {
	if v.isNull() {
		return
	}
	r.addMedium(m)
	r.readDataURL(v)
}

// readAudio reads the ID of a sound that the model has made before.
func (r *Request) readAudio(v jsonValue) {
	if v.text[0] == '{' {
		r.addMedium(sound)
	}
}

func (r *Request) readData(v jsonValue) { r.addData(v, true) }

func (r *Request) readDataURL(v jsonValue) { r.addData(v, false) }

// addData reads a URL or, if bare is true, data. A URL of no data names something that is not in the body.
func (r *Request) addData(v jsonValue, bare bool) {
	if v.text[0] != '"' {
		return
	}
	part := r.part()
	part.data += v.stringBytes()
	if !bytes.HasPrefix(v.text, []byte(`"data:`)) {
		part.isRemote = part.isRemote || !bare
		if bare {
			part.encoded += base64Length(v.text[1 : len(v.text)-1])
		}
		return
	}
	_, data, isBase64 := bytes.Cut(v.text[:len(v.text)-1], []byte(";base64,"))
	i := slices.IndexFunc(mediaURLs, func(u mediaURL) bool { return bytes.HasPrefix(v.text, []byte(u.prefix)) })
	if i < 0 {
		part.isText = true
		return
	}
	part.medium = max(part.medium, mediaURLs[i].medium)
	if isBase64 {
		part.isBase64 = true
		part.encoded += base64Length(data)
	}
}

// base64Length returns how many bytes of a string are base64, as they are spelled: all, or 0 if there is anything but
// base64, which counts as text.
func base64Length(data []byte) int64 {
	for i, c := range data {
		isSlash := c == '\\' && i+1 < len(data) && data[i+1] == '/' // some encoders escape it
		if !isBase64[c] && !isSlash {
			return 0
		}
	}
	return int64(len(data))
}

// A mediaURL is how data URLs of a medium begin, after the quote.
type mediaURL struct {
	prefix string
	medium medium
}

// mediaURLs has the data URLs whose base64 is not text. One without a type is a medium of the kind of its part.
var mediaURLs = []mediaURL{
	{`"data:image`, image}, {`"data:audio`, sound}, {`"data:video`, video}, {`"data:;`, image},
	{`"data:application/pdf`, file}, {`"data:application/octet-stream`, file}, {`"data:application/msword`, file},
	{`"data:application/vnd.`, file},
}

// isBase64 has the bytes of both alphabets of base64 and of its padding (RFC 4648).
var isBase64 = func() (set [256]bool) {
	for _, c := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_=") {
		set[c] = true
	}
	return set
}()
