// Package billtest makes random responses of providers, and says what they cost. It computes that as plainly as
// possible, from whole decoded events and by the rules of docs/gateway.md, so that tests can compare what the service
// charges with it.
package billtest

// A Format is what is known here of a wire format.
type Format struct {
	Name string
	Path string // that ends the URL of an endpoint

	// read reads the JSON object of an event, or of a whole response.
	read func(object map[string]any) event

	// larger returns the one of two usages that counts, of which b came later. What b lacks may be taken from a.
	larger func(a, b usage) usage

	// request returns the body of a request. A part of its messages can be an image.
	request     func(m *maker) string
	text, image string // the type of a part with text, and a part with an image

	// whole returns a response that is not streamed, and stream the data of a stream's events.
	whole  func(m *maker) string
	stream func(m *maker) []string
}

// Formats returns all formats. A further one is a row here, and a file with its functions.
func Formats() []Format {
	return []Format{
		{
			Name: "OpenAI Chat", Path: "/chat/completions", read: readChat, larger: largerChat,
			text: "text", image: `{"type":"image_url","image_url":{"url":"data:image/png;base64,QUJDRA=="}}`,
			request: (*maker).chatRequest, whole: (*maker).wholeChat, stream: (*maker).chatStream,
		},
		{
			Name: "Anthropic Messages", Path: "/messages", read: readMessage, larger: largerMessage,
			text: "text", image: `{"type":"image","source":{"type":"base64","media_type":"image/png","data":"QUJDRA=="}}`,
			request: (*maker).messageRequest, whole: (*maker).wholeMessage, stream: (*maker).messageStream,
		},
		{
			Name: "OpenAI Responses", Path: "/responses", read: readResponse, larger: largerChat,
			text: "input_text", image: `{"type":"input_image","image_url":"data:image/png;base64,QUJDRA=="}`,
			request: (*maker).responseRequest, whole: (*maker).wholeResponse, stream: (*maker).responseStream,
		},
	}
}
