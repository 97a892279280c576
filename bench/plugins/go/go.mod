module compute-go

go 1.26.8

require (
	github.com/extism/go-pdk v1.1.3
	golang.org/x/image v0.30.0
)
