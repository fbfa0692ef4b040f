package llmwire

import (
	"bytes"
	"slices"
	"strconv"
)

const (
	maxImages          = 10          // n of a request
	maxPartials        = 3           // partial_images of a request
	partialImageTokens = 100         // output tokens of a partial image (OpenAI's guide to image generation)
	maxPixels          = 1536 * 1024 // of an image for which Holding.ImageTokens is meant
)

var openAIImages = openAI(format{
	kind:             Images,
	urlSuffix:        "/images/generations",
	delivery:         AsItComes,
	holdIfUnreported: true,
	held:             textInput,
	output:           imageOutput,
	smallest:         `{"prompt":"a","n":1}`, // a size or a quality is one that some models refuse
	complete:         (*Request).endImages,
	safetyID:         memberName{"", "safety_identifier"},

	rules: requestRules{members: newColumnTable(append(openAIImagesMembers, openAIMembers)...)},
	request: newJSONShape(openAIBody, jsonTable[Request]{
		"n":               {read: (*Request).readImages},
		"negative_prompt": {read: (*Request).readText},
		"output_format":   {read: (*Request).readImageFormat},
		"partial_images":  {read: (*Request).readPartials},
		"prompt":          {read: (*Request).readPrompt},
		"quality":         {read: (*Request).readQuality},
		"size":            {read: (*Request).readSize},
		"stream":          {read: (*Request).readStream},
	}),
	report: newJSONShape(usageReport, usageMembers.under("svg_usage"), jsonTable[Report]{
		"data":            {read: (*Report).readResults},
		"b64_json":        {read: (*Report).readText}, // of an event
		"type":            {read: (*Report).readImageEvent},
		"svg_usage":       {enter: (*Report).beginOtherUsage, read: (*Report).endOtherUsage},
		"svg_usage.model": {read: (*Report).readIterationModel},
	}),
})

// openAIImagesMembers has the top-level members of requests for images.
var openAIImagesMembers = []listing{
	// OpenAI's SDKs (ImageGenerateParamsBase in resources/images.d.ts).
	{
		known: []string{
			"background", "moderation", "output_compression", "response_format", "safety_identifier", "style",
		},
		ruled: []string{"n", "output_format", "partial_images", "prompt", "quality", "size", "stream"},
		refused: []string{
			"complexity", "frame_count", "frame_duration_ms", // more output for an image
			"svg", // names another model
		},
	},
	// xAI (docs.x.ai, image generation), Together (docs.together.ai, images).
	{
		known:   []string{"aspect_ratio", "disable_safety_checker", "guidance_scale", "seed"},
		ruled:   []string{"negative_prompt"},
		refused: []string{"height", "image_loras", "image_url", "resolution", "steps", "width"}, // another price, or input
	},
}

func (r *Request) readImages(v jsonValue) { r.N = max(1, r.number(v, 1, maxImages)) }

func (r *Request) readPartials(v jsonValue) { r.partials = r.number(v, 0, maxPartials) }

func (r *Request) readPrompt(v jsonValue) {
	if v.text[0] != '"' && !v.isNull() {
		r.fail("prompt must be a string")
	}
	r.readText(v)
}

// readImageFormat, readQuality and readSize read what changes how many tokens an image has. More than those of the
// dearest quality and size of OpenAI's first model may have any number.
func (r *Request) readImageFormat(v jsonValue) { r.readValue(v, "png", "jpeg", "webp") }

func (r *Request) readQuality(v jsonValue) {
	r.readValue(v, "auto", "low", "medium", "high", "standard", "hd")
}

func (r *Request) readSize(v jsonValue) {
	width, height, _ := bytes.Cut(unquoted(v.text), []byte("x"))
	w, err := strconv.ParseUint(string(width), 10, 16)
	h, wrong := strconv.ParseUint(string(height), 10, 16)
	if err != nil || wrong != nil || w*h > maxPixels {
		r.readValue(v, "auto")
	}
}

// readValue reads a member that may raise the cost unless it has one of the given values.
func (r *Request) readValue(v jsonValue, same ...string) {
	if !v.isNull() && !slices.Contains(same, string(unquoted(v.text))) {
		r.addUnknown(v.path)
	}
}

// endImages completes what was read of a request for images. Of a stream with several it is not known whether it has a
// usage for each, and where it ends.
func (r *Request) endImages() {
	if r.Stream && r.N > 1 {
		r.fail("n must be 1 in a request with stream: true")
	}
	r.MediaOutput = true
	r.HasImages = len(r.Unknown) > 0 // which may be images to go on from
}

// readImageEvent reads the type of a stream's event.
func (r *Report) readImageEvent(v jsonValue) {
	switch string(v.text) {
	case `"image_generation.completed"`:
		r.Done, r.hasChoices, r.finished = true, true, 1
	case `"error"`:
		r.fail()
	}
}

// beginOtherUsage and endOtherUsage read the usage of another model that was asked to help.
func (r *Report) beginOtherUsage() {
	r.beginIterations()
	r.beginIteration()
}

func (r *Report) endOtherUsage(v jsonValue) {
	r.endIteration(v)
	r.endIterations(v)
}
