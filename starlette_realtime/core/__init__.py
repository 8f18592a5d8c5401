"""The core: dispatch, rooms, sessions, local fan-out. Runs on asyncio and trio."""
