export * from '@extism-host/connect'
