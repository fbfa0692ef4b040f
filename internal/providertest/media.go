package providertest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// inputs returns how many texts the member input has: one, an array of them, or either as numbers of tokens.
func (a *response) inputs() int {
	var body struct{ Input []json.RawMessage }
	if json.Unmarshal(a.content, &body) != nil || len(body.Input) == 0 {
		return 1
	}
	if first := body.Input[0][0]; first != '"' && first != '[' && first != '{' {
		return 1
	}
	return len(body.Input)
}

// withUsage sends an object with the members and a member usage, unless that is "", at the place of the conduct: in the
// middle is before the last member.
func (a *response) withUsage(usage string, members ...[]part) {
	if usage != "" {
		at := map[Place]int{Last: len(members), First: 0, Middle: len(members) - 1}[a.conduct.UsageAt]
		members = slices.Insert(members, at, []part{text(`"usage":` + usage)})
	}
	body, before := []part(nil), "{"
	for _, member := range members {
		body = append(append(body, text(before)), member...)
		before = ","
	}
	a.whole(append(body, text("}"))...)
}

// list returns a member data with n elements.
func list(n int, element func(i int) []part) []part {
	member := []part{text(`"data":[`)}
	for i := range n {
		if i > 0 {
			member = append(member, text(","))
		}
		member = append(member, element(i)...)
	}
	return append(member, text("]"))
}

// respondEmbeddings responds in the format of embeddings. All are the same three numbers, as often as it takes.
func (a *response) respondEmbeddings() {
	var body struct {
		EncodingFormat string `json:"encoding_format"`
		Dimensions     int
	}
	_ = json.Unmarshal(a.content, &body) // members of other types are as if they were missing
	three, begin, between, end := "0.25,-0.5,1", "[", ",", "]"
	if body.EncodingFormat == "base64" {
		three, begin, between, end = "AACAPgAAAL8AAIA/", `"`, "", `"`
	}
	n := a.inputs()
	times := max(body.Dimensions/3, a.conduct.Size/n/len(three+between), 1)
	data := list(n, func(i int) []part {
		return []part{
			text(fmt.Sprintf(`{"object":"embedding","index":%d,"embedding":%s`, i, begin)),
			{three + between, times - 1}, text(three + end + "}"),
		}
	})
	usage := ""
	if !a.conduct.NoUsage {
		usage = fmt.Sprintf(`{"prompt_tokens":%d,"total_tokens":%[1]d}`, a.input())
	}
	a.withUsage(usage, []part{text(`"object":"list"`)}, data, []part{text(`"model":` + quoted(a.request.Model))})
}

// respondModerations responds in the format of moderations, which has no usage.
func (a *response) respondModerations() {
	results := make([]string, a.inputs())
	for i := range results {
		results[i] = `{"flagged":false,"categories":{"violence":false},"category_scores":{"violence":0.01},` +
			`"category_applied_input_types":{"violence":["text"]}}`
	}
	a.whole(text(fmt.Sprintf(`{"id":"modr-1","model":%s,"results":[%s]}`,
		quoted(a.request.Model), strings.Join(results, ","))))
}

// mediaUsage returns the usage as OpenAI has it for images and sounds.
func (a *response) mediaUsage(details string) string {
	if a.conduct.NoUsage {
		return ""
	}
	input := a.input()
	output, _ := a.output()
	return fmt.Sprintf(`{"input_tokens":%d,"output_tokens":%d,"total_tokens":%d%s}`, input, output, input+output, details)
}

// imageSettings are members of every response with images.
const imageSettings = `"background":"opaque","output_format":"png","quality":"low","size":"1024x1024"`

// onePixel is the beginning of an image, in base64.
const onePixel = "iVBORw0KGgoA"

// imageUsage returns the usage of images, whose output is one.
func (a *response) imageUsage() string {
	output, _ := a.output()
	return a.mediaUsage(fmt.Sprintf(`,"input_tokens_details":{"text_tokens":%d,"image_tokens":0},`+
		`"output_tokens_details":{"text_tokens":0,"image_tokens":%d}`, a.input(), output))
}

// respondImages responds in the format of generated images. A stream has as many images that are not complete as the
// request asks for, or the conduct.
func (a *response) respondImages() {
	n := a.choices()
	size := max(a.conduct.Size/n/len(onePixel), 1)
	if a.request.Stream {
		a.stream(a.imageEvents(strings.Repeat(onePixel, size)))
		return
	}
	data := list(n, func(int) []part {
		return []part{text(`{"b64_json":"`), {onePixel, size}, text(`"}`)}
	})
	a.withUsage(a.imageUsage(), []part{text(`"created":1764000000`)}, data, []part{text(imageSettings)})
}

func (a *response) imageEvents(image string) (events []event) {
	var body struct {
		PartialImages int `json:"partial_images"`
	}
	_ = json.Unmarshal(a.content, &body)
	a.conduct.Events = cmp.Or(a.conduct.Events, body.PartialImages)
	add := func(after Moment, name, members string) {
		events = append(events, event{after, name, fmt.Sprintf(`{"type":%q,"b64_json":%q,"created_at":1764000000,%s%s}`,
			name, image, imageSettings, members)})
	}
	if a.conduct.Events > 0 {
		for i, after := range a.contents() {
			add(after, "image_generation.partial_image", fmt.Sprintf(`,"partial_image_index":%d`, i))
		}
	}
	usage := a.imageUsage()
	if usage != "" {
		usage = `,"usage":` + usage
	}
	add(BeforeUsage, "image_generation.completed", usage)
	return events
}
