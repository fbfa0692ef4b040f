package providertest

import (
	"fmt"
	"strconv"
	"strings"
)

// chatUsage returns the usage as OpenAI has it: the input includes cached tokens.
func (a *response) chatUsage() string {
	input := a.input()
	output, _ := a.output()
	return fmt.Sprintf(`{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,`+
		`"prompt_tokens_details":{"cached_tokens":%d}}`,
		input, output, input+output, input/2)
}

// finishReason returns why the response ends.
func (a *response) finishReason() string {
	if _, cutOff := a.output(); cutOff {
		return "length"
	}
	if a.tool() != "" {
		return "tool_calls"
	}
	return "stop"
}

func toolCall(name string) string {
	return fmt.Sprintf(`{"id":"call_1","type":"function","function":{"name":%s,"arguments":%s}}`,
		quoted(name), quoted(toolArguments))
}

// chatBody returns a response of OpenAI that is not a stream.
func (a *response) chatBody() string {
	message := fmt.Sprintf(`{"role":"assistant","content":%s}`, quoted(a.text()))
	if tool := a.tool(); tool != "" {
		message = `{"role":"assistant","content":null,"tool_calls":[` + toolCall(tool) + `]}`
	}
	choices := make([]string, a.choices())
	for i := range choices {
		choices[i] = fmt.Sprintf(`{"index":%d,"message":%s,"logprobs":null,"finish_reason":%q}`, i, message, a.finishReason())
	}
	usage := ""
	if !a.conduct.NoUsage {
		usage = `,"usage":` + a.chatUsage()
	}
	return fmt.Sprintf(`{"id":"chatcmpl-1","object":"chat.completion","created":1764000000,"model":%s,"choices":[%s]%s}`,
		quoted(a.request.Model), strings.Join(choices, ","), usage)
}

// chatEvents returns the events of a stream of OpenAI.
func (a *response) chatEvents() (events []event) {
	options := a.request.StreamOptions
	withUsage, null := options != nil && options.IncludeUsage && !a.conduct.NoUsage, ""
	if withUsage {
		null = `,"usage":null`
	}
	head := `{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1764000000,"model":` + quoted(a.request.Model)
	add := func(after Moment, delta, reason string) {
		for i := range a.choices() {
			events = append(events, event{after, "", fmt.Sprintf(
				`%s,"choices":[{"index":%d,"delta":%s,"logprobs":null,"finish_reason":%s}]%s}`, head, i, delta, reason, null)})
		}
	}
	add(never, `{"role":"assistant","content":""}`, "null")
	if a.conduct.Reasoning != "" {
		add(BeforeContent, `{"reasoning_content":`+quoted(a.conduct.Reasoning)+`}`, "null")
	}
	if tool := a.tool(); tool != "" {
		call := strings.Replace(toolCall(tool), quoted(toolArguments), `""`, 1)
		add(BeforeContent, `{"tool_calls":[{"index":0,`+strings.TrimPrefix(call, "{")+`]}`, "null")
		add(InContent, `{"tool_calls":[{"index":0,"function":{"arguments":`+quoted(toolArguments)+`}}]}`, "null")
	} else {
		delta := `{"content":` + quoted(a.text()) + `}`
		for _, after := range a.contents() {
			add(after, delta, "null")
		}
	}
	add(InContent, `{}`, strconv.Quote(a.finishReason()))
	if withUsage {
		events = append(events, event{BeforeUsage, "", head + `,"choices":[],"usage":` + a.chatUsage() + `}`})
	}
	return append(events, event{BeforeEnd, "", "[DONE]"})
}
