package llmwire

// Usage is what a response has used: tokens of the model by kind, each from 0 to MaxTokens, and what else is counted.
// Input and Output are the totals. The other kinds of tokens are parts of them, and no token has two kinds.
type Usage struct {
	Input            int64
	CachedInput      int64 // read from the provider's cache
	CacheWrite       int64 // written to it, for its shortest time
	CacheWrite1h     int64 // written to it for an hour
	AudioInput       int64
	CachedAudioInput int64
	ImageInput       int64

	Output      int64
	AudioOutput int64
	ImageOutput int64

	Searches int64 // that the provider has made
}

// ModelUsage is what one model has used.
type ModelUsage struct {
	Model string
	Usage
}
