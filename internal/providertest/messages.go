package providertest

import (
	"fmt"
	"strings"
)

// messageUsage returns the usage as Anthropic has it: the input does not include cached tokens.
func (a *response) messageUsage() string {
	input := a.input()
	output, _ := a.output()
	return fmt.Sprintf(`{"input_tokens":%d,"cache_creation_input_tokens":%d,"cache_read_input_tokens":%d,`+
		`"output_tokens":%d}`,
		input-input/4-input/3, input/4, input/3, output)
}

// stopReason returns why the response ends.
func (a *response) stopReason() string {
	if _, cutOff := a.output(); cutOff {
		return "max_tokens"
	}
	if a.tool() != "" {
		return "tool_use"
	}
	return "end_turn"
}

// messageBody returns a response of Anthropic that is not a stream.
func (a *response) messageBody() string {
	content := fmt.Sprintf(`{"type":"text","text":%s}`, quoted(a.text()))
	if tool := a.tool(); tool != "" {
		content = fmt.Sprintf(`{"type":"tool_use","id":"toolu_1","name":%s,"input":%s}`, quoted(tool), toolArguments)
	}
	usage := ""
	if !a.conduct.NoUsage {
		usage = `,"usage":` + a.messageUsage()
	}
	return fmt.Sprintf(`{"id":"msg_1","type":"message","role":"assistant","model":%s,"content":[%s],"stop_reason":%q,`+
		`"stop_sequence":null%s}`, quoted(a.request.Model), content, a.stopReason(), usage)
}

// messageEvents returns the events of a stream of Anthropic.
func (a *response) messageEvents() (events []event) {
	add := func(after Moment, name, members string) {
		events = append(events, event{after, name, fmt.Sprintf(`{"type":%q%s}`, name, members)})
	}
	startUsage, endUsage := "", ""
	if !a.conduct.NoUsage {
		output, _ := a.output()
		all := fmt.Sprintf(`"output_tokens":%d`, output)
		startUsage = `,"usage":` + strings.Replace(a.messageUsage(), all, `"output_tokens":1`, 1)
		endUsage = fmt.Sprintf(`,"usage":{"output_tokens":%d}`, output)
	}
	add(never, "message_start", fmt.Sprintf(`,"message":{"id":"msg_1","type":"message","role":"assistant","model":%s,`+
		`"content":[],"stop_reason":null,"stop_sequence":null%s}`, quoted(a.request.Model), startUsage))
	add(BeforeContent, "ping", "")
	index := 0
	block := func(start string) {
		add(BeforeContent, "content_block_start", fmt.Sprintf(`,"index":%d,"content_block":%s`, index, start))
	}
	delta := func(after Moment, kind, member, value string) {
		add(after, "content_block_delta",
			fmt.Sprintf(`,"index":%d,"delta":{"type":%q,%q:%s}`, index, kind, member, quoted(value)))
	}
	if a.conduct.Reasoning != "" {
		block(`{"type":"thinking","thinking":"","signature":""}`)
		delta(BeforeContent, "thinking_delta", "thinking", a.conduct.Reasoning)
		add(BeforeContent, "content_block_stop", `,"index":0`)
		index++
	}
	if tool := a.tool(); tool != "" {
		block(fmt.Sprintf(`{"type":"tool_use","id":"toolu_1","name":%s,"input":{}}`, quoted(tool)))
		half := len(toolArguments) / 2
		delta(BeforeContent, "input_json_delta", "partial_json", toolArguments[:half])
		delta(InContent, "input_json_delta", "partial_json", toolArguments[half:])
	} else {
		block(`{"type":"text","text":""}`)
		for _, after := range a.contents() {
			delta(after, "text_delta", "text", a.text())
		}
	}
	add(InContent, "content_block_stop", fmt.Sprintf(`,"index":%d`, index))
	// The reason and the usage come in one event.
	add(BeforeUsage, "message_delta",
		fmt.Sprintf(`,"delta":{"stop_reason":%q,"stop_sequence":null}%s`, a.stopReason(), endUsage))
	add(BeforeEnd, "message_stop", "")
	return events
}
