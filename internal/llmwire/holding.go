package llmwire

import "math/bits"

const (
	toolTokens      = 600     // held for the prompt that providers add if there are tools
	clientTools     = 3_000   // the same if they have defined one of them, as Anthropic its computer, bash and editor
	unknownFile     = 200_000 // tokens of a file whose size is not known, if nothing else bounds it
	messageTokens   = 4       // estimated for what is around a message
	bytesOfEstimate = 4       // of text in a token
	freeFieldBytes  = 1 << 10 // of the text in the fields of a form, about what whisper-1 reads of a prompt
)

// An inputSize is what has been counted of the input of a request.
type inputSize struct {
	text      int64   // bytes of the strings that the model reads, decoded
	base64    int64   // bytes of media in the body, as they are spelled
	messages  int64   // and the system prompt
	media     int64   // images and sounds
	files     int64   // documents, files and video of unknown size
	fileBytes []int64 // of those in the body
}

// A Holding says how the input of a request is counted. No number may be negative.
type Holding struct {
	BytesPerToken int64 // bytes of text that are assumed to be a token; at 1, text never has more tokens; not 0
	MediaTokens   int64 // tokens of each image and sound
	FileTokens    int64 // most tokens of each document, file and video; 0 means MaxInput or, without that, 200,000
	ImageTokens   int64 // output tokens of each image that is generated
	MaxInput      int64 // the model's context window in tokens; 0 means that it is not known
}

// A heldInput is what of a request is held as its input.
type heldInput int

const (
	bodyInput  heldInput = iota // all of its body
	textInput                   // what the model reads of it, or all of the body if a part is not known
	noInput                     // nothing
	soundInput                  // long texts in its fields: the seconds of its sound have a price of their own
)

// HeldInput returns the input tokens to hold for the request: one for each BytesPerToken bytes of its body without the
// base64 of media, MediaTokens for each image and sound, and for each document, file and video FileTokens or, if that
// is less, one for each BytesPerToken bytes of its data in the body; 600 if there are tools, or 3,000 if the provider
// has defined one of those that the client runs; and KeptTokens; at most MaxInput. Of a request for images only the
// prompt counts, of one for a transcript the text of its fields beyond 1 KiB, of those for moderations and speech
// nothing.
func (r *Request) HeldInput(h Holding) int64 {
	size := int64(len(r.body)) + r.forgotten - r.input.base64
	switch held := formats[r.Format].held; {
	case held == noInput:
		return 0
	case held == soundInput:
		size = max(0, r.input.text-freeFieldBytes)
	case held == textInput && len(r.Unknown) == 0:
		size = r.input.text
	}
	tokens := divideUp(size, h.BytesPerToken)
	tokens = min(tokens+r.mediaTokens(h), MaxTokens)
	switch {
	case r.tools.needMore:
		tokens += clientTools
	case r.tools.exist:
		tokens += toolTokens
	}
	return min(tokens+r.KeptTokens, h.mostInput())
}

// HeldOutput returns the output tokens to hold for each choice of a request whose format has no limit for them: those
// of an image.
func (r *Request) HeldOutput(h Holding) int64 {
	if formats[r.Format].output != imageOutput {
		return 0
	}
	return min(h.ImageTokens+r.partials*partialImageTokens, MaxTokens)
}

// EstimatedInput returns the input tokens to charge if the provider does not report them: one for each 4 bytes of the
// strings that the model reads, and of the JSON of the parameters of tools, 4 for each message, media as they are
// held, and KeptTokens; at most MaxInput.
func (r *Request) EstimatedInput(h Holding) int64 {
	tokens := divideUp(r.input.text, bytesOfEstimate) + messageTokens*r.input.messages
	return min(tokens+r.mediaTokens(h)+r.KeptTokens, h.mostInput())
}

// mediaTokens returns the tokens of all media, and MaxTokens if it is more.
func (r *Request) mediaTokens(h Holding) int64 {
	most := h.FileTokens
	if most == 0 && h.MaxInput > 0 {
		most = h.MaxInput
	} else if most == 0 {
		most = unknownFile
	}
	tokens := product(r.input.media, h.MediaTokens)
	tokens = min(tokens+product(r.input.files, most), MaxTokens)
	for _, n := range r.input.fileBytes {
		tokens = min(tokens+min(divideUp(n, h.BytesPerToken), most), MaxTokens)
	}
	return tokens
}

func (h Holding) mostInput() int64 {
	if h.MaxInput == 0 {
		return MaxTokens
	}
	return h.MaxInput
}

func divideUp(n, unit int64) int64 { return (n + unit - 1) / unit }

// product returns a × b, and MaxTokens if it is more.
func product(a, b int64) int64 {
	if high, low := bits.Mul64(uint64(a), uint64(b)); high == 0 && low < MaxTokens {
		return int64(low)
	}
	return MaxTokens
}

// readText reads a string that the model reads.
func (r *Request) readText(v jsonValue) { r.input.text += v.stringBytes() }

// readSchema reads JSON that the model reads as it is.
func (r *Request) readSchema(v jsonValue) {
	if v.text[0] == '{' || v.text[0] == '[' {
		r.input.text += int64(len(v.text) - v.escapes)
	}
	r.readText(v)
}
