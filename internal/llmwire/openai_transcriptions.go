package llmwire

var openAITranscriptions = openAI(format{
	kind:      Transcription,
	urlSuffix: "/audio/transcriptions",

	rules:   requestRules{members: newColumnTable(openAIMembers)},
	request: newJSONShape(requestMembers),
	report:  newJSONShape(reportMembers),
})

var openAITranslations = openAI(format{
	kind:      Transcription,
	urlSuffix: "/audio/translations",

	rules:   requestRules{members: newColumnTable(openAIMembers)},
	request: newJSONShape(requestMembers),
	report:  newJSONShape(reportMembers),
})
