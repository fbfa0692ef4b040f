package providertest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"strings"
)

// A format is what is spoken at a path.
type format struct {
	pathSuffix string
	isForm     bool   // requests are multipart forms, not JSON
	foreign    string // members of other formats that are refused, with spaces between them
	respond    func(*response)
}

// notChat are the members of OpenAI Chat that OpenAI's other formats do not know.
const notChat = "messages max_tokens max_completion_tokens stream_options"

// formatOf returns the format of a request. Other paths than those of the other formats are OpenAI Chat's.
func formatOf(r *http.Request) format {
	if isStored(r) {
		return format{respond: (*response).respondStored}
	}
	for _, f := range []format{
		{"/messages", false, "", (*response).respondMessages},
		{"/messages/count_tokens", false, "", (*response).countMessages},
		{"/responses", false, "messages max_tokens max_completion_tokens n", (*response).respondResponses},
		{"/responses/compact", false, notChat + " stream n max_output_tokens", (*response).compact},
		{"/responses/input_tokens", false, notChat + " stream n max_output_tokens", (*response).countResponses},
		{"/embeddings", false, notChat + " stream n max_output_tokens", (*response).respondEmbeddings},
		{"/moderations", false, notChat + " stream n max_output_tokens", (*response).respondModerations},
		{"/images/generations", false, notChat + " input max_output_tokens", (*response).respondImages},
		{"/audio/speech", false, notChat + " stream n max_output_tokens", (*response).respondSpeech},
		{"/audio/transcriptions", true, notChat + " n", (*response).respondTranscription},
		{"/audio/translations", true, notChat + " n stream", (*response).respondTranslation},
	} {
		if strings.HasSuffix(r.URL.Path, f.pathSuffix) {
			return f
		}
	}
	return format{respond: (*response).respondChat}
}

// readBody reads a request, and says what is wrong with it, or "".
func readBody(r *http.Request, content []byte) (body requestBody, wrong string) {
	if isStored(r) {
		return body, ""
	}
	f, contentType := formatOf(r), r.Header.Get("Content-Type")
	members := make(map[string]bool)
	if f.isForm {
		form, err := readForm(contentType, content)
		if err != nil {
			return body, "Could not parse multipart form: " + err.Error()
		}
		if form["file"] == "" {
			return body, "Missing required parameter: 'file'."
		}
		for name := range form {
			members[name] = true
		}
		body.Model, body.Stream = form["model"], form["stream"] == "true"
	} else {
		// Tests fill large bodies with spaces, which the decoder would look at one by one, and twice.
		content = bytes.TrimRight(content, " ")
		if json.Unmarshal(content, &body) != nil {
			wrong = "We could not parse the JSON body of your request."
		}
		if contentType != "application/json" { // as OpenAI's, which reads a form then
			wrong = "you must provide a model parameter"
		}
		if f.foreign != "" && wrong == "" {
			var all map[string]json.RawMessage
			_ = json.Unmarshal(content, &all) // it was read before
			for name := range all {
				members[name] = true
			}
		}
	}
	for _, name := range strings.Fields(f.foreign) {
		if members[name] {
			wrong = fmt.Sprintf("Unknown parameter: '%s'.", name)
		}
	}
	return body, wrong
}

// readForm returns the fields of a multipart form. Of a file it is the content, and of several fields of one name the
// last.
func readForm(contentType string, content []byte) (fields map[string]string, err error) {
	kind, params, err := mime.ParseMediaType(contentType)
	if err != nil || kind != "multipart/form-data" {
		return nil, fmt.Errorf("the content type is %q", contentType)
	}
	fields = make(map[string]string)
	for parts := multipart.NewReader(bytes.NewReader(content), params["boundary"]); ; {
		part, err := parts.NextRawPart()
		if err == io.EOF {
			return fields, nil
		}
		if err != nil {
			return nil, err
		}
		value, err := io.ReadAll(part)
		if err != nil {
			return nil, err
		}
		fields[part.FormName()] = string(value)
	}
}
