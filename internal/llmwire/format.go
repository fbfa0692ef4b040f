// Package llmwire reads what clients and providers of language models send each other, to find out what a request can
// cost and what its response has cost.
//
// Reading takes time linear in the bytes that are read, whatever they are. A [Stream] buffers at most 2 MiB.
//
// Bytes are forwarded as they came, and never decoded and encoded again. What has to change in a request is replaced in
// place.
//
// What is not understood is counted at its dearest, and never free: a tool of an unknown type as one that the provider
// runs, data as text unless it certainly is the base64 of a medium, and what cannot be read of a response as content.
//
// Each wire format is a [Format], a row in the table of formats, and a file with that row.
//
// OpenAI's Realtime API has events instead of requests and responses: a [RealtimeScan] and [RealtimeRules] read those
// of the client, and a [RealtimeReport] those of the provider.
package llmwire

import (
	"bytes"
	"encoding/json"
	"strings"
)

// A Format is one of the formats in which clients and providers speak.
type Format int

// The formats. Their numbers are part of cache keys: add new ones at the end.
const (
	OpenAIChat           Format = iota // https://platform.openai.com/docs/api-reference/chat
	AnthropicMessages                  // https://docs.anthropic.com/en/api/messages
	OpenAIResponses                    // https://platform.openai.com/docs/api-reference/responses
	OpenAIEmbeddings                   // https://platform.openai.com/docs/api-reference/embeddings
	OpenAIModerations                  // https://platform.openai.com/docs/api-reference/moderations
	OpenAIImages                       // https://platform.openai.com/docs/api-reference/images/create
	OpenAITranscriptions               // https://platform.openai.com/docs/api-reference/audio/createTranscription
	OpenAITranslations                 // https://platform.openai.com/docs/api-reference/audio/createTranslation
	OpenAISpeech                       // https://platform.openai.com/docs/api-reference/audio/createSpeech
)

// A Kind is what endpoints are for, by the name that a config has for it. Each format is of one kind.
type Kind string

// The kinds.
const (
	Text          Kind = "text"
	Embeddings    Kind = "embeddings"
	Moderation    Kind = "moderation"
	Images        Kind = "images"
	Transcription Kind = "transcription"
	Speech        Kind = "speech"

	// Realtime endpoints serve sessions over WebSockets, which have no Format.
	Realtime Kind = "realtime"
)

// IsKind reports whether there is a format of the kind.
func IsKind(kind Kind) bool { return len(URLSuffixes(kind)) > 0 }

// formats is the table of formats. A further format is a constant above, a row here, and a file with that row.
var formats = [...]*format{
	OpenAIChat:        &openAIChat,
	AnthropicMessages: &anthropicMessages,

	OpenAIResponses:      &openAIResponses,
	OpenAIEmbeddings:     &openAIEmbeddings,
	OpenAIModerations:    &openAIModerations,
	OpenAIImages:         &openAIImages,
	OpenAITranscriptions: &openAITranscriptions,
	OpenAITranslations:   &openAITranslations,
	OpenAISpeech:         &openAISpeech,
}

// A format is what distinguishes one format from the others.
type format struct {
	kind Kind

	// company is whose API the format belongs to.
	company string

	// urlSuffix ends the path of the URL of each endpoint that has the format.
	urlSuffix string

	// countPath, below the URL of an endpoint, is where a provider says how many tokens a request has; "" if nowhere.
	countPath string

	// isOwnHost reports whether a host is one of the company's whose format it is.
	isOwnHost func(host string) bool

	// keyHeader is the header in which a provider expects its API key, after keyPrefix.
	keyHeader, keyPrefix string

	// requestIDHeader is the header of a response in which the SDKs look for the ID of the request.
	requestIDHeader string

	// versionHeader and version say which version of the API a request is for, if providers want to know.
	versionHeader, version string

	// limitMember returns the member of a request that limits the output, for the provider at host. It is nil if the
	// output has no limit that a request can set.
	limitMember func(host string) string

	// limitVaries says that some servers expect the limit in another member than limitMember says.
	limitVaries bool

	// usageOption says that a stream reports its usage only if the request has stream_options.include_usage. An extra
	// event then reports it.
	usageOption bool

	// takesForm says that requests are forms with a file, and no JSON.
	takesForm bool

	// delivery says how a response is relayed that is not a stream of events.
	delivery Delivery

	// holdIfUnreported says that a response without usage costs what was held. Otherwise it costs an estimate.
	holdIfUnreported bool

	// held says what of a request is held as its input. If that is nothing, no tokens of its response are counted.
	held heldInput

	// output says what the output tokens of a response are.
	output outputKind

	// cachesUnasked says that a provider may write to its cache what the request does not ask it to keep.
	cachesUnasked bool

	// smallest is the smallest request that providers serve, but for its model and limit. leastLimit is the least limit of
	// output tokens that they accept; 0 is 1.
	smallest   string
	leastLimit int64

	// safetyID is the member of a request by which a provider can tell users apart.
	safetyID memberName

	// rules and request say what is known and read of a request, and report what is read of a response or the data of an
	// event.
	rules   requestRules
	request *jsonShape[Request]
	report  *jsonShape[Report]

	// complete, unless it is nil, is called when all of a request was read.
	complete func(r *Request)

	errorBody  func(status int, e errorText) []byte
	errorEvent func(status int, message string) []byte

	// isAccountError reports whether a provider's error concerns the operator's account, though its status does not
	// say so.
	isAccountError func(status int, e providerError) bool

	// modelsQuery is the query with which a provider lists as many models as it can.
	modelsQuery string

	// modelBody returns the JSON of one model, and modelList that of a list, whose bodies are given with commas between
	// them.
	modelBody func(m Model) []byte
	modelList func(models []Model, bodies []byte) []byte
}

// An outputKind is what output tokens are.
type outputKind int

const (
	textOutput  outputKind = iota // text and, as far as the usage says so, other media
	imageOutput                   // of images alone
	noOutput                      // not counted: all tokens of a usage are input
)

// A Delivery is how a response is relayed that is not a stream of events.
type Delivery int

// The deliveries.
const (
	Whole     Delivery = iota // JSON that is read to its end first, so that its header can say what it costs
	AsItComes                 // JSON of any size: only its usage is read
	Binary                    // not read at all
)

// Delivery returns how responses of the format are relayed.
func (f Format) Delivery() Delivery { return formats[f].delivery }

// Kind returns the kind of endpoints that have the format.
func (f Format) Kind() Kind { return formats[f].kind }

// TakesForm reports whether requests of the format are forms with a file. ReadForm reads these, ReadRequest others.
func (f Format) TakesForm() bool { return formats[f].takesForm }

// IsTranscript reports whether responses of the format are transcripts of sounds, which cost seconds or tokens.
func (f Format) IsTranscript() bool { return formats[f].held == soundInput }

// CachesUnasked reports whether a provider may write to its cache, which can have a price of its own, though a request
// does not ask for it.
func (f Format) CachesUnasked() bool { return formats[f].cachesUnasked }

// HoldsIfUnreported reports whether a response without usage costs what was held for the request. Otherwise it costs an
// estimate.
func (f Format) HoldsIfUnreported() bool { return formats[f].holdIfUnreported }

// ReportsUsage reports whether responses of the format are expected to say what they have used.
func (f Format) ReportsUsage() bool { return formats[f].held != noInput }

// SharesModels reports whether clients of the two formats ask for the same list of models: those of one company's API
// do, whatever they want the models for.
func (f Format) SharesModels(other Format) bool {
	return formats[f].company == formats[other].company
}

// FormatOf returns the format of an endpoint of a kind, by the end of its URL's path, and false if no format of that
// kind has a path that ends so.
func FormatOf(kind Kind, urlPath string) (Format, bool) {
	for i, f := range formats {
		if f.kind == kind && strings.HasSuffix(urlPath, f.urlSuffix) {
			return Format(i), true
		}
	}
	return 0, false
}

// URLSuffix returns what the path of the URL of each endpoint ends in that has the format.
func (f Format) URLSuffix() string { return formats[f].urlSuffix }

// URLSuffixes returns the URLSuffix of each format of a kind.
func URLSuffixes(kind Kind) (all []string) {
	for _, f := range formats {
		if f.kind == kind {
			all = append(all, f.urlSuffix)
		}
	}
	return all
}

// CountPath returns the path below the URL of an endpoint at which a provider says how many tokens a request has. It is
// "" if the format has none.
func (f Format) CountPath() string { return formats[f].countPath }

// IsTokenCount reports whether body is a response of CountPath.
func (f Format) IsTokenCount(body []byte) (ok bool) {
	var w jsonWalker[bool]
	return f.CountPath() != "" && w.walk(body, tokenCountShape, &ok) == nil && ok
}

var tokenCountShape = newJSONShape(jsonTable[bool]{"input_tokens": {read: func(ok *bool, v jsonValue) {
	_, *ok = readCount(v.text)
}}})

// Credential returns the header that carries an API key to a provider. Its name is in canonical form.
func (f Format) Credential(key string) (name, value string) {
	return formats[f].keyHeader, formats[f].keyPrefix + key
}

// VersionHeader returns the header that tells a provider which version of its API a request of tollgate's own is for.
// Its name is in canonical form, and "" if the format has none.
func (f Format) VersionHeader() (name, value string) {
	return formats[f].versionHeader, formats[f].version
}

// ModelsQuery returns the query with which a provider lists as many models as it can in one response.
func (f Format) ModelsQuery() string { return formats[f].modelsQuery }

// RequestIDHeader returns the header of a response in which the official SDKs look for the ID of the request, to show
// it in errors. Its name is in canonical form.
func (f Format) RequestIDHeader() string { return formats[f].requestIDHeader }

// LimitMember returns the name of the top-level member of a request in which the provider at host, a name without a
// port, expects the limit of output tokens. It is "" if HasLimit reports false.
func (f Format) LimitMember(host string) string {
	if !f.HasLimit() {
		return ""
	}
	return formats[f].limitMember(host)
}

// LimitVaries reports whether some servers expect the limit of output tokens in another member than LimitMember says.
func (f Format) LimitVaries() bool { return formats[f].limitVaries }

// HasLimit reports whether a request can limit the output tokens of its response.
func (f Format) HasLimit() bool { return formats[f].limitMember != nil }

// errorText is what an error says. A format leaves out what it has no place for.
type errorText struct {
	message string
	code    string // "" is that of the status
	details string // JSON, or ""
}

// ErrorBody returns the JSON of an error with an HTTP status of 400 or more. The official SDKs raise the error type of
// their own that belongs to the status.
func (f Format) ErrorBody(status int, message string) []byte {
	return formats[f].errorBody(status, errorText{message: message})
}

// UnsupportedBody returns the JSON of the error for a request that ReadRequest refuses with e.
func (f Format) UnsupportedBody(status int, e UnsupportedError) []byte {
	return formats[f].errorBody(status, errorText{message: e.Error(), details: e.Details()})
}

// CodedErrorBody does what ErrorBody does, with another code than that of the status, in formats whose errors have
// codes. "" is that of the status.
func (f Format) CodedErrorBody(status int, code, message string) []byte {
	return formats[f].errorBody(status, errorText{message: message, code: code})
}

// ErrorEvent returns the server-sent event that tells a client that its stream is broken, with a blank line at its end.
// Its data says what ErrorBody(status, message) does.
func (f Format) ErrorEvent(status int, message string) []byte {
	return formats[f].errorEvent(status, message)
}

// UnknownRouteBody returns the JSON of a 404 for a path that does not exist. It has OpenAI's shape.
func UnknownRouteBody(message string) []byte {
	return openAIError("invalid_request_error", "", message)
}

// A providerError is what is read of a provider's error, in all formats.
type providerError struct {
	Type, Code any
	Message    string
}

// IsAccountError reports whether a provider's error response concerns the operator's account with it, and not the
// request. The body may be of any form.
func (f Format) IsAccountError(status int, body []byte) bool {
	switch status {
	case 401, 402, 403:
		return true
	}
	var response struct{ Error providerError }
	_ = json.Unmarshal(body, &response) // what is not as expected does not concern the account
	return formats[f].isAccountError(status, response.Error)
}

// errorType returns the type of error for a status that has none of its own, in all formats.
func errorType(status int) string {
	if status < 500 {
		return "invalid_request_error"
	}
	return "api_error"
}

// A Model is a model that may be asked for.
type Model struct {
	Name     string // as a request names it
	Endpoint string // name of the endpoint that has it
}

// ModelBody returns the JSON that describes a model. The time of its creation is not known, so it is the start of 1970.
func (f Format) ModelBody(m Model) []byte { return formats[f].modelBody(m) }

// ModelListBody returns the JSON of a list of models, which keeps their order.
func (f Format) ModelListBody(models []Model) []byte {
	bodies := make([][]byte, len(models))
	for i, m := range models {
		bodies[i] = f.ModelBody(m)
	}
	return formats[f].modelList(models, bytes.Join(bodies, []byte(",")))
}

// ObeysReasoningOff reports whether the provider at host, a name without a port, generates no reasoning for a request
// of the format that says so. Other servers may not know the member that says it.
func (f Format) ObeysReasoningOff(host string) bool { return formats[f].isOwnHost(host) }
