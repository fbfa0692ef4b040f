package llmwire

// Moderations are free at OpenAI, and cost what the config asks for a request.
var openAIModerations = openAI(format{
	kind:      Moderation,
	urlSuffix: "/moderations",
	held:      noInput,
	smallest:  `{"input":"a"}`,

	// OpenAI's SDKs (ModerationCreateParams in resources/moderations.d.ts), Mistral (docs.mistral.ai/api, classifiers).
	rules: requestRules{members: newColumnTable(openAIMembers, listing{
		known: []string{"input", "metadata"}, refused: []string{"stream"},
	})},
	request: newJSONShape(openAIBody),
	report:  newJSONShape(usageReport, jsonTable[Report]{"results": {read: (*Report).readResults}}),
})
