package llmwire

import (
	"bytes"
	"fmt"
)

// A Model is a model that may be asked for, and the endpoint that has it.
type Model struct{ Name, Endpoint string }

// ModelBody returns the JSON of a model. Since when there is one is not known.
func (f Format) ModelBody(m Model) []byte {
	id := jsonString(m.Name)
	if f == AnthropicMessages {
		const format = `{"type":"model","id":%s,"display_name":%s,"created_at":"1970-01-01T00:00:00Z"}`
		return fmt.Appendf(nil, format, id, id)
	}
	return fmt.Appendf(nil, `{"id":%s,"object":"model","created":0,"owned_by":%s}`, id, jsonString(m.Endpoint))
}

// ModelListBody returns the JSON of a list of models.
func (f Format) ModelListBody(models []Model) []byte {
	list := make([][]byte, len(models))
	for i, m := range models {
		list[i] = f.ModelBody(m)
	}
	data := bytes.Join(list, []byte(","))
	if f == OpenAIChat {
		return fmt.Appendf(nil, `{"object":"list","data":[%s]}`, data)
	}
	first, last := "null", "null"
	if len(models) > 0 {
		first, last = jsonString(models[0].Name), jsonString(models[len(models)-1].Name)
	}
	return fmt.Appendf(nil, `{"data":[%s],"has_more":false,"first_id":%s,"last_id":%s}`, data, first, last)
}
