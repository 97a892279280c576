export * from '@extism-host/otel'
