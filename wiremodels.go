package main

import (
	"bytes"
	"fmt"
)

// A listedModel is a model that may be asked for, and the endpoint that has it.
type listedModel struct{ name, endpoint string }

// modelBody returns the JSON of a model. Since when there is one is not known.
func (f wireFormat) modelBody(m listedModel) []byte {
	id := jsonString(m.name)
	if f == anthropicMessages {
		const format = `{"type":"model","id":%s,"display_name":%s,"created_at":"1970-01-01T00:00:00Z"}`
		return fmt.Appendf(nil, format, id, id)
	}
	return fmt.Appendf(nil, `{"id":%s,"object":"model","created":0,"owned_by":%s}`, id, jsonString(m.endpoint))
}

// modelListBody returns the JSON of a list of models.
func (f wireFormat) modelListBody(models []listedModel) []byte {
	list := make([][]byte, len(models))
	for i, m := range models {
		list[i] = f.modelBody(m)
	}
	data := bytes.Join(list, []byte(","))
	if f == openAIChat {
		return fmt.Appendf(nil, `{"object":"list","data":[%s]}`, data)
	}
	first, last := "null", "null"
	if len(models) > 0 {
		first, last = jsonString(models[0].name), jsonString(models[len(models)-1].name)
	}
	return fmt.Appendf(nil, `{"data":[%s],"has_more":false,"first_id":%s,"last_id":%s}`, data, first, last)
}
